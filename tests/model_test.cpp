// The model layer by itself: RoPE's known answers, the cache's sequences, loading, and the forward
// pass against the double-precision reference on small random models of every shape.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numbers>
#include <utility>

#include "base/error.h"
#include "reference.h"
#include "support/assets.h"
#include "support/backends.h"
#include "support/run_model.h"
#include "support/tiny_model.h"

namespace tinyllama::testing {
namespace {

// ---- RoPE

Config rope_config(RopeScaling::Kind kind, double factor) {
  Config c;  // head_dim 64, base 10000, context 2048
  c.rope_scaling.kind = kind;
  c.rope_scaling.factor = factor;
  return c;
}

TEST(Rope, PlainFrequenciesAreAGeometricSeries) {
  const RopeFrequencies rope = rope_frequencies(tiny_config({.head_dim = 8}), 0);
  ASSERT_EQ(rope.inv_freq.size(), 4u);
  for (int i = 0; i < 4; i++) {
    EXPECT_NEAR(rope.inv_freq[static_cast<size_t>(i)] * std::pow(10.0, i), 1, 1e-14);
  }
  EXPECT_EQ(rope.scale, 1);
}

TEST(Rope, LinearDividesEveryFrequency) {
  const RopeFrequencies plain = rope_frequencies(Config{}, 2048);
  const RopeFrequencies rope = rope_frequencies(rope_config(RopeScaling::Kind::linear, 4), 2048);
  for (size_t i = 0; i < 32; i++) EXPECT_EQ(rope.inv_freq[i], plain.inv_freq[i] / 4);
}

TEST(Rope, DynamicStretchesTheBaseBeyondTheContextOnly) {
  const Config config = rope_config(RopeScaling::Kind::dynamic, 2);
  const RopeFrequencies plain = rope_frequencies(Config{}, 0);
  EXPECT_EQ(rope_frequencies(config, 100).inv_freq, plain.inv_freq);
  EXPECT_EQ(rope_frequencies(config, 2048).inv_freq, plain.inv_freq);
  // Twice the context: base * (2 * 2 - 1)^(64 / 62), so the slowest pair slows by just 3.
  const RopeFrequencies rope = rope_frequencies(config, 4096);
  EXPECT_EQ(rope.inv_freq[0], 1);
  EXPECT_NEAR(rope.inv_freq[31] / plain.inv_freq[31], 1.0 / 3, 1e-12);
}

TEST(Rope, YarnKeepsFastPairsAndInterpolatesSlowOnes) {
  const RopeFrequencies plain = rope_frequencies(Config{}, 0);
  Config config = rope_config(RopeScaling::Kind::yarn, 4);
  RopeFrequencies rope = rope_frequencies(config, 0);
  EXPECT_NEAR(rope.scale, 1.138629436111989, 1e-15);  // 0.1 ln 4 + 1
  EXPECT_NEAR(rope.inv_freq[0], 1, 1e-15);
  EXPECT_NEAR(rope.inv_freq[31] / plain.inv_freq[31], 0.25, 1e-14);
  config.rope_scaling.mscale = 1;
  config.rope_scaling.mscale_all_dim = 0.5;
  EXPECT_NEAR(rope_frequencies(config, 0).scale, 1.138629436111989 / (1 + 0.05 * std::log(4.0)),
              1e-15);
  config.rope_scaling.attention_factor = 1.3;
  EXPECT_EQ(rope_frequencies(config, 0).scale, 1.3);
}

TEST(Rope, Llama3KeepsFastPairsAndInterpolatesSlowOnes) {
  const RopeFrequencies plain = rope_frequencies(Config{}, 0);
  Config config = rope_config(RopeScaling::Kind::llama3, 8);
  config.rope_scaling.original_context = 2048;
  const RopeFrequencies rope = rope_frequencies(config, 0);
  for (size_t i = 0; i < 32; i++) {
    const double turns = 2048 * plain.inv_freq[i] / (2 * std::numbers::pi);
    const double ratio = rope.inv_freq[i] / plain.inv_freq[i];
    const double smooth = std::clamp((turns - 1) / 3, 0.0, 1.0);
    EXPECT_NEAR(ratio, (1 - smooth) / 8 + smooth, 1e-14) << "pair " << i;
  }
  EXPECT_EQ(rope.scale, 1);
}

TEST(Rope, RowsHoldCosinesThenSines) {
  const RopeFrequencies rope{{1, 0.1}, 2};
  float row[4];
  rope_row(rope, 5, row);
  EXPECT_FLOAT_EQ(row[0], static_cast<float>(2 * std::cos(5.0)));
  EXPECT_FLOAT_EQ(row[1], static_cast<float>(2 * std::cos(0.5)));
  EXPECT_FLOAT_EQ(row[2], static_cast<float>(2 * std::sin(5.0)));
  EXPECT_FLOAT_EQ(row[3], static_cast<float>(2 * std::sin(0.5)));
  rope_row(rope, -5, row);
  EXPECT_FLOAT_EQ(row[2], static_cast<float>(-2 * std::sin(5.0)));
}

// ---- The cache's bookkeeping

class Cache : public ::testing::Test {
 protected:
  static constexpr int64_t kBlocks = 6;
  Config config_ = tiny_config({});
  NaiveBackend backend_;
  KvCache cache_{backend_, config_, DType::f32, kBlocks};

  // Marks position `p` of `sequence` in both layers, and reads a mark back.
  void mark(const KvSequence& sequence, int64_t p, float value) {
    for (int64_t layer = 0; layer < config_.n_layers; layer++) {
      *slot(sequence, layer, p) = value + static_cast<float>(layer) / 4;
    }
  }
  float marked(const KvSequence& sequence, int64_t p) {
    const float value = *slot(sequence, 0, p);
    EXPECT_EQ(*slot(sequence, 1, p), value == 0 ? 0 : value + 0.25f);
    return value;
  }
  void grow(KvSequence& sequence, int64_t n) {
    sequence.reserve(n);
    for (int64_t i = 0; i < n; i++) {
      mark(sequence, sequence.length() + i, static_cast<float>(sequence.length() + i + 1));
    }
    sequence.advance(n);
  }

 private:
  float* slot(const KvSequence& sequence, int64_t layer, int64_t p) {
    return reinterpret_cast<float*>(
        NaiveBackend::position(cache_.layer(layer), sequence.blocks(), p));
  }
};

TEST_F(Cache, ReservesByTheBlockAndGivesAllBack) {
  KvSequence sequence(cache_);
  EXPECT_EQ(sequence.blocks_needed(0), 0);
  EXPECT_EQ(sequence.blocks_needed(64), 1);
  EXPECT_EQ(sequence.blocks_needed(65), 2);
  grow(sequence, 60);
  EXPECT_EQ(cache_.n_free(), 5);
  EXPECT_EQ(sequence.blocks_needed(4), 0);
  EXPECT_EQ(sequence.blocks_needed(5), 1);
  grow(sequence, 5);
  EXPECT_EQ(sequence.length(), 65);
  EXPECT_EQ(cache_.n_free(), 4);
  for (int64_t p = 0; p < 65; p++) EXPECT_EQ(marked(sequence, p), static_cast<float>(p + 1));
  sequence.clear();
  EXPECT_EQ(sequence.length(), 0);
  EXPECT_EQ(cache_.n_free(), kBlocks);
}

TEST_F(Cache, ReservingAgainTakesNothingNew) {
  KvSequence sequence(cache_);
  sequence.reserve(100);
  EXPECT_EQ(cache_.n_free(), 4);
  EXPECT_EQ(sequence.blocks_needed(100), 0);
  sequence.reserve(100);
  EXPECT_EQ(cache_.n_free(), 4);
  sequence.truncate(0);  // unwritten reservations go back, too
  EXPECT_EQ(cache_.n_free(), kBlocks);
}

TEST_F(Cache, ExhaustionChangesNothing) {
  KvSequence first(cache_), second(cache_);
  grow(first, 4 * kKvBlock);
  grow(second, 10);
  EXPECT_EQ(cache_.n_free(), 1);
  try {
    second.reserve(2 * kKvBlock);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[kv cache] want 2 free blocks of 64 positions, got 1 of 6");
  }
  EXPECT_EQ(cache_.n_free(), 1);
  EXPECT_EQ(second.length(), 10);
  EXPECT_EQ(second.blocks().size(), 1u);
  second.reserve(kKvBlock);
  EXPECT_EQ(cache_.n_free(), 0);
}

TEST_F(Cache, CopiesShareUntilOneWrites) {
  KvSequence first(cache_);
  grow(first, 70);
  KvSequence second = first;
  EXPECT_EQ(cache_.n_free(), 4);
  EXPECT_EQ(second.blocks_needed(1), 1);  // the shared partial block
  grow(second, 1);
  EXPECT_EQ(cache_.n_free(), 3);
  EXPECT_EQ(first.blocks()[0], second.blocks()[0]);
  EXPECT_NE(first.blocks()[1], second.blocks()[1]);
  EXPECT_EQ(first.blocks_needed(1), 0);  // its own again
  mark(second, 69, 1000);
  EXPECT_EQ(marked(first, 69), 70);
  EXPECT_EQ(marked(second, 68), 69);
  EXPECT_EQ(marked(second, 70), 71);
}

TEST_F(Cache, FullSharedBlocksAreNotCopied) {
  KvSequence first(cache_);
  grow(first, 64);
  KvSequence second = first;
  EXPECT_EQ(second.blocks_needed(1), 1);  // a new one
  grow(second, 1);
  EXPECT_EQ(first.blocks()[0], second.blocks()[0]);
  EXPECT_EQ(cache_.n_free(), 4);
}

TEST_F(Cache, CopyTakesOnlyWhatIsWritten) {
  KvSequence first(cache_);
  grow(first, 10);
  first.reserve(100);
  EXPECT_EQ(cache_.n_free(), 4);
  KvSequence second = first;
  EXPECT_EQ(second.blocks().size(), 1u);
  EXPECT_EQ(first.blocks_needed(100), 1);  // its first block is shared now
}

TEST_F(Cache, CopyOnWriteThatDoesNotFitChangesNothing) {
  KvSequence first(cache_);
  grow(first, 6 * kKvBlock - 10);
  KvSequence second = first;
  EXPECT_THROW(second.reserve(1), Error);
  EXPECT_EQ(second.blocks()[5], first.blocks()[5]);
  EXPECT_EQ(cache_.n_free(), 0);
  first.clear();
  second.reserve(1);  // alone, it owns the block
  EXPECT_EQ(marked(second, 0), 1);
}

TEST_F(Cache, MovesAndAssignments) {
  KvSequence first(cache_), second(cache_);
  grow(first, 10);
  grow(second, 100);
  EXPECT_EQ(cache_.n_free(), 3);
  second = std::move(first);
  EXPECT_EQ(cache_.n_free(), 5);
  EXPECT_EQ(second.length(), 10);
  KvSequence third(cache_);
  third = second;
  const KvSequence& alias = third;
  third = alias;
  EXPECT_EQ(cache_.n_free(), 5);
  EXPECT_EQ(third.length(), 10);
  second.clear();
  EXPECT_EQ(cache_.n_free(), 5);
  third.clear();
  EXPECT_EQ(cache_.n_free(), kBlocks);
}

TEST_F(Cache, TruncateReleasesWholeBlocks) {
  KvSequence first(cache_);
  grow(first, 130);
  KvSequence second = first;
  first.truncate(64);
  EXPECT_EQ(first.blocks().size(), 1u);
  EXPECT_EQ(cache_.n_free(), 3);  // the copy still holds them
  first.truncate(10);
  grow(first, 1);  // writes into a shared block: copied
  EXPECT_NE(first.blocks()[0], second.blocks()[0]);
  EXPECT_EQ(marked(second, 10), 11);
  EXPECT_EQ(cache_.n_free(), 2);
}

TEST_F(Cache, ShiftMovesMarksAndCopiesSharedBlocks) {
  const std::vector<double> still(4, 0.0);  // frequency 0: nothing turns
  KvSequence first(cache_);
  grow(first, 150);
  KvSequence second = first;
  first.shift(3, 70, still);
  EXPECT_EQ(first.length(), 80);
  EXPECT_EQ(first.blocks().size(), 2u);
  for (int64_t p = 0; p < 80; p++) {
    EXPECT_EQ(marked(first, p), static_cast<float>((p < 3 ? p : p + 70) + 1));
  }
  for (int64_t p = 0; p < 150; p++) EXPECT_EQ(marked(second, p), static_cast<float>(p + 1));
  EXPECT_EQ(cache_.n_free(), 1);  // two private blocks, three of the other's
  second.shift(0, 150, still);
  EXPECT_EQ(cache_.n_free(), 4);
}

TEST_F(Cache, ShiftThatDoesNotFitChangesNothing) {
  const std::vector<double> still(4, 0.0);
  KvSequence first(cache_);
  grow(first, 5 * kKvBlock);
  KvSequence second = first;
  EXPECT_THROW(first.shift(0, 64, still), Error);
  EXPECT_EQ(first.length(), 5 * kKvBlock);
  EXPECT_EQ(cache_.n_free(), 1);
  first.shift(0, 4 * kKvBlock, still);  // one block to move into
  EXPECT_EQ(marked(first, 0), 257);
  EXPECT_EQ(marked(second, 0), 1);
}

TEST_F(Cache, RejectsImpossibleSizes) {
  EXPECT_THROW(KvCache(backend_, config_, DType::f32, 0), Error);
  EXPECT_THROW(KvCache(backend_, config_, DType::q4_0, 1), Error);
  EXPECT_THROW(KvCache(backend_, config_, DType::f32, int64_t{1} << 40), Error);
}

// ---- Loading

TEST(Loading, PacksEveryTensorAndCountsItsBytes) {
  NaiveBackend backend;
  const Config config = tiny_config({});
  const MemoryCheckpoint checkpoint(random_model(config, 1), DType::bf16);
  uint64_t last = 0, total = 0;
  const Llama model(backend, *checkpoint, [&](std::string_view, uint64_t done, uint64_t of) {
    EXPECT_GT(done, last);
    last = done, total = of;
  });
  EXPECT_EQ(total, (*checkpoint).tensor_bytes());
  EXPECT_EQ(last + model.weights().embed.bytes(), total);
  EXPECT_EQ(model.weights().dtype, DType::bf16);
  EXPECT_EQ(model.default_kv_type(), DType::bf16);
  ASSERT_EQ(model.weights().layers.size(), 2u);
  EXPECT_EQ(model.weights().layers[1].qkv->rows, config.q_dim() + 2 * config.kv_dim());
  EXPECT_EQ(model.weights().layers[1].gate_up->rows, 2 * config.intermediate);
  // The naive backend reads FP32: every parameter but the embedding, and one row of that.
  const int64_t values = config.parameters() - config.vocab_size * config.hidden;
  EXPECT_EQ(model.weights().bytes, static_cast<size_t>(4 * values + 2 * config.hidden));
}

TEST(Loading, QuantizedWeightsDefaultToAHalfCache) {
  NaiveBackend backend;
  const MemoryCheckpoint checkpoint(random_model(tiny_config({.intermediate = 64}), 1),
                                    DType::q8_0);
  EXPECT_EQ(Llama(backend, *checkpoint).default_kv_type(), DType::f16);
}

TEST(Loading, InterleavedRowsGiveTheSameModel) {
  NaiveBackend backend;
  const reference::Model weights = random_model(tiny_config({}), 5);
  const MemoryCheckpoint plain(weights, DType::f32), gguf(weights, DType::f32, true);
  const std::vector<int32_t> tokens = random_tokens(9, 50, 1);
  EXPECT_TRUE(same_bits(all_logits(Llama(backend, *plain), DType::f32, tokens),
                        all_logits(Llama(backend, *gguf), DType::f32, tokens)));
}

TEST(Loading, NamesAMissingTensor) {
  NaiveBackend backend;
  const MemoryCheckpoint whole(random_model(tiny_config({}), 1), DType::f32);
  Checkpoint checkpoint = *whole;
  checkpoint.tensors.erase("model.layers.1.mlp.up_proj.weight");
  try {
    const Llama model(backend, checkpoint);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[load] memory: no model.layers.1.mlp.up_proj.weight");
  }
}

// Bytes of the mapping of the file at `path` that are in memory now; -1 where /proc cannot tell.
int64_t resident_bytes(const std::string& path) {
  std::ifstream maps("/proc/self/smaps");
  int64_t total = -1;
  bool ours = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find('-') < line.find(' ')) ours = line.ends_with(path);
    if (ours && line.starts_with("Rss:")) {
      total = std::max<int64_t>(total, 0) + 1024 * std::stoll(line.substr(4));
    }
  }
  return total;
}

TEST(Loading, GivesPackedPagesBackAndKeepsTheEmbedding) {
  const Config config =
      tiny_config({.hidden = 256, .intermediate = 512, .n_layers = 4, .head_dim = 64});
  const MemoryCheckpoint memory(random_model(config, 1), DType::f32);
  const TemporaryFolder folder;
  ThreadPool pool(1);
  write_hf_folder(*memory, folder / "hf", DType::f32, pool, nullptr);
  const std::string path = folder / "hf/model.safetensors";

  NaiveBackend backend;
  std::unique_ptr<Llama> model;
  {
    const Checkpoint checkpoint = open_checkpoint(folder / "hf");
    model = std::make_unique<Llama>(backend, checkpoint);
  }
  const std::vector<int32_t> tokens = random_tokens(5, config.vocab_size, 1);
  const Logits got = all_logits(*model, DType::f32, tokens);  // the file is still mapped
  EXPECT_TRUE(same_bits(got, all_logits(Llama(backend, *memory), DType::f32, tokens)));
  const int64_t resident = resident_bytes(path);
  if (resident < 0) GTEST_SKIP() << "no /proc/self/smaps";
  EXPECT_GT(std::filesystem::file_size(path), 8u << 20);
  EXPECT_LT(resident, 4 << 20);  // a row of the embedding may map the 2 MiB around it
}

// ---- The forward pass, on every backend

class ForwardOn : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend(GetParam());

  // FP32 weights and cache: the engine's logits are the reference's to rounding.
  static void expect_close(const Logits& got, const reference::Matrix& want, const Config& config,
                           int64_t positions) {
    const Difference d = compare(got, want.values);
    EXPECT_LE(d.largest, fp32_tolerance(config, positions, d.magnitude));
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, ForwardOn, ::testing::ValuesIn(backend_names()),
                         [](const auto& backend) { return backend.param; });

TEST_P(ForwardOn, MatchesTheReferenceOnEveryShape) {
  const TinyShape shapes[] = {
      {},                                               // GQA
      {.n_kv_heads = 4},                                // MHA
      {.n_kv_heads = 1},                                // MQA
      {.n_heads = 3, .n_kv_heads = 1, .head_dim = 16},  // a group of 3, q_dim != hidden
      {.hidden = 160, .n_heads = 2, .n_kv_heads = 1, .head_dim = 80},
      {.hidden = 20, .intermediate = 36, .n_heads = 5, .n_kv_heads = 5, .head_dim = 4},
      {.hidden = 64,
       .intermediate = 176,
       .n_layers = 3,
       .n_heads = 1,
       .n_kv_heads = 1,
       .head_dim = 64,
       .vocab = 257},
      {.vocab = 33, .tied = true},
      {.vocab = 1, .tied = true},
      {.hidden = 2,
       .intermediate = 1,
       .n_layers = 1,
       .n_heads = 1,
       .n_kv_heads = 1,
       .head_dim = 2,
       .vocab = 3},
  };
  for (const TinyShape& shape : shapes) {
    SCOPED_TRACE(::testing::Message() << "hidden " << shape.hidden << ", heads " << shape.n_heads
                                      << "/" << shape.n_kv_heads << " of " << shape.head_dim
                                      << ", vocab " << shape.vocab << ", tied " << shape.tied);
    const Config config = tiny_config(shape);
    const reference::Model weights = random_model(config, 7);
    const MemoryCheckpoint checkpoint(weights, DType::f32);
    const Llama model(*backend_, *checkpoint);
    const std::vector<int32_t> tokens = random_tokens(70, config.vocab_size, 3);
    const reference::Pass want = reference::forward(weights, tokens);
    expect_close(all_logits(model, DType::f32, tokens), want.logits, config, 70);
    expect_close(all_logits(model, DType::f32, tokens, 9), want.logits, config, 70);
    expect_close(all_logits(model, DType::f32, tokens, 1), want.logits, config, 70);
  }
}

TEST_P(ForwardOn, KeysAndValuesAreReadAsTheCacheRoundsThem) {
  const Config config = tiny_config({});
  const reference::Model weights = random_model(config, 11);
  const MemoryCheckpoint checkpoint(weights, DType::f32);
  const Llama model(*backend_, *checkpoint);
  const std::vector<int32_t> tokens = random_tokens(40, config.vocab_size, 3);
  const std::vector<double> exact = reference::forward(weights, tokens).logits.values;
  const std::pair<DType, double (*)(double)> types[] = {
      {DType::f16,
       [](double x) -> double { return f16_to_f32(f32_to_f16(static_cast<float>(x))); }},
      {DType::bf16,
       [](double x) -> double { return bf16_to_f32(f32_to_bf16(static_cast<float>(x))); }}};
  for (const auto& [type, round] : types) {
    const std::vector<double> rounded =
        reference::forward(weights, tokens, {.kv = round}).logits.values;
    const Logits got = all_logits(model, type, tokens);
    // A value that FP32 puts on the other side of a rounding boundary differs by a whole step, so
    // the engine is not FP32-close to the rounded reference, only much closer than to the exact
    // one.
    const double step = compare(rounded, exact).largest;
    EXPECT_LT(compare(got, rounded).largest, step / 4) << traits(type).name;
    EXPECT_GT(compare(got, exact).largest, step / 2) << traits(type).name;
  }
}

TEST_P(ForwardOn, RaggedBatchesMatchTheReference) {
  const Config config = tiny_config({});
  const reference::Model weights = random_model(config, 13);
  const MemoryCheckpoint checkpoint(weights, DType::f32);
  const auto backend = make_backend(GetParam(), 2);
  const Llama model(*backend, *checkpoint);
  KvCache cache(*backend, config, DType::f32, 12);
  constexpr size_t kSequences = 3;
  std::vector<std::vector<int32_t>> tokens;
  std::vector<KvSequence> sequences;
  std::vector<Logits> got(kSequences);
  for (size_t i = 0; i < kSequences; i++) {
    tokens.push_back(random_tokens(120, config.vocab_size, 100 + i));
    sequences.emplace_back(cache);
  }
  // Rows each sequence adds in each step: prefill, decode and verification side by side.
  const std::vector<std::vector<size_t>> steps = {{7, 0, 0},  {1, 90, 0}, {4, 1, 1}, {60, 1, 30},
                                                  {1, 1, 40}, {1, 5, 1},  {0, 1, 0}};
  for (const std::vector<size_t>& rows : steps) {
    std::vector<Piece> pieces;
    for (size_t i = 0; i < kSequences; i++) {
      const auto past = static_cast<size_t>(sequences[i].length());
      if (rows[i] > 0)
        pieces.push_back({&sequences[i], std::span(tokens[i]).subspan(past, rows[i])});
    }
    const Logits logits = step(model, cache, pieces);
    auto next = logits.begin();
    for (size_t i = 0; i < kSequences; i++) {
      const auto n = static_cast<std::ptrdiff_t>(rows[i]) * config.vocab_size;
      got[i].insert(got[i].end(), next, next + n);
      next += n;
    }
  }
  for (size_t i = 0; i < kSequences; i++) {
    const auto n = static_cast<size_t>(sequences[i].length());
    const auto want = reference::forward(weights, std::span(tokens[i]).first(n));
    expect_close(got[i], want.logits, config, static_cast<int64_t>(n));
  }
}

// Three splits of attention's reduction tree, at once and in pieces.
TEST_P(ForwardOn, LongContextsMatchTheReference) {
  const Config config = tiny_config({.n_layers = 1, .context = 2048});
  const reference::Model weights = random_model(config, 15);
  const MemoryCheckpoint checkpoint(weights, DType::f32);
  const Llama model(*backend_, *checkpoint);
  const std::vector<int32_t> tokens = random_tokens(1100, config.vocab_size, 3);
  const reference::Pass want = reference::forward(weights, tokens);
  expect_close(all_logits(model, DType::f32, tokens), want.logits, config, 1100);
  expect_close(all_logits(model, DType::f32, tokens, 300), want.logits, config, 1100);
}

TEST_P(ForwardOn, SegmentsBringTheirOwnFrequencies) {
  Config config = tiny_config({.context = 16});
  const reference::Model weights = random_model(config, 17);
  const MemoryCheckpoint checkpoint(weights, DType::f32);
  const Llama model(*backend_, *checkpoint);
  const std::vector<int32_t> tokens = random_tokens(40, config.vocab_size, 5);
  config.rope_scaling = {.kind = RopeScaling::Kind::yarn, .factor = 4};
  const RopeFrequencies yarn = rope_frequencies(config, 40);
  config.rope_scaling = {.kind = RopeScaling::Kind::dynamic, .factor = 2};
  const RopeFrequencies dynamic = rope_frequencies(config, 40);

  KvCache cache(*backend_, config, DType::f32, 3);
  KvSequence plain(cache), with_yarn(cache), with_dynamic(cache);
  const Piece pieces[] = {
      {&plain, tokens}, {&with_yarn, tokens, &yarn}, {&with_dynamic, tokens, &dynamic}};
  const Logits logits = step(model, cache, pieces);
  const size_t n = logits.size() / 3;
  const auto part = [&](size_t i) {
    return Logits(logits.begin() + static_cast<std::ptrdiff_t>(i * n),
                  logits.begin() + static_cast<std::ptrdiff_t>((i + 1) * n));
  };
  expect_close(part(0), reference::forward(weights, tokens).logits, config, 40);
  expect_close(part(1), reference::forward(weights, tokens, yarn).logits, config, 40);
  expect_close(part(2), reference::forward(weights, tokens, dynamic).logits, config, 40);
}

TEST_P(ForwardOn, CopiedSequencesGoTheirOwnWays) {
  const Config config = tiny_config({});
  const reference::Model weights = random_model(config, 19);
  const MemoryCheckpoint checkpoint(weights, DType::f32);
  const Llama model(*backend_, *checkpoint);
  const std::vector<int32_t> a = random_tokens(90, config.vocab_size, 1);
  std::vector<int32_t> b = a;
  for (size_t i = 75; i < b.size(); i++) b[i] = (a[i] + 1) % 50;

  KvCache cache(*backend_, config, DType::f32, 4);
  KvSequence first(cache);
  step(model, cache, first, std::span(a).first(75));
  KvSequence second = first;
  const Piece pieces[] = {{&first, std::span(a).subspan(75)}, {&second, std::span(b).subspan(75)}};
  const Logits logits = step(model, cache, pieces);
  EXPECT_EQ(cache.n_free(), 1);
  const auto half = static_cast<std::ptrdiff_t>(logits.size() / 2);
  const Logits alone_a = all_logits(model, DType::f32, a),
               alone_b = all_logits(model, DType::f32, b);
  EXPECT_TRUE(
      same_bits({logits.begin(), logits.begin() + half}, std::span(alone_a).last(size_t(half))));
  EXPECT_TRUE(
      same_bits({logits.begin() + half, logits.end()}, std::span(alone_b).last(size_t(half))));
}

TEST_P(ForwardOn, TruncatedSequencesForget) {
  const Config config = tiny_config({});
  const MemoryCheckpoint checkpoint(random_model(config, 23), DType::f32);
  const Llama model(*backend_, *checkpoint);
  const std::vector<int32_t> tokens = random_tokens(80, config.vocab_size, 1);
  const std::vector<int32_t> wrong = random_tokens(60, config.vocab_size, 2);
  const Logits want = all_logits(model, DType::f32, tokens);

  KvCache cache(*backend_, config, DType::f32, 2);
  KvSequence sequence(cache);
  step(model, cache, sequence, std::span(tokens).first(50));
  step(model, cache, sequence, wrong);
  sequence.truncate(50);
  const Logits got = step(model, cache, sequence, std::span(tokens).subspan(50));
  EXPECT_TRUE(same_bits(got, std::span(want).last(got.size())));
}

// With one layer, keys and values are a function of token and position alone, so a shifted cache is
// to rounding that of the tokens left.
TEST_P(ForwardOn, ShiftIsReRotation) {
  const Config config = tiny_config({.n_layers = 1});
  const reference::Model weights = random_model(config, 29);
  const MemoryCheckpoint checkpoint(weights, DType::f32);
  const Llama model(*backend_, *checkpoint);
  for (const auto& [keep, discard] :
       {std::pair<int64_t, int64_t>{0, 1}, {4, 60}, {64, 64}, {5, 130}}) {
    SCOPED_TRACE(::testing::Message() << "keep " << keep << ", discard " << discard);
    std::vector<int32_t> tokens = random_tokens(201, config.vocab_size, 9);
    KvCache cache(*backend_, config, DType::f32, 8);
    KvSequence sequence(cache);
    step(model, cache, sequence, std::span(tokens).first(200));
    KvSequence copy = sequence;
    sequence.shift(keep, discard, model.rope().inv_freq);
    const Logits got = step(model, cache, sequence, std::span(tokens).last(1));

    tokens.erase(tokens.begin() + keep, tokens.begin() + keep + discard);
    reference::Matrix want = reference::forward(weights, tokens).logits;
    want.values.erase(want.values.begin(), want.values.end() - config.vocab_size);
    expect_close(got, want, config, 200);
    EXPECT_EQ(copy.length(), 200);
  }
}

// Deeper, the shifted cache remembers what was dropped: a function of the history, to be compared
// with the naive backend only.
TEST_P(ForwardOn, ShiftOfADeepModelMatchesTheNaiveBackend) {
  const Config config = tiny_config({.n_layers = 3});
  const reference::Model weights = random_model(config, 31);
  const MemoryCheckpoint checkpoint(weights, DType::f32);
  const std::vector<int32_t> tokens = random_tokens(150, config.vocab_size, 9);
  const auto shifted = [&](Backend& backend) {
    const Llama model(backend, *checkpoint);
    KvCache cache(backend, config, DType::f32, 4);
    KvSequence sequence(cache);
    step(model, cache, sequence, std::span(tokens).first(140));
    sequence.shift(10, 75, model.rope().inv_freq);
    return step(model, cache, sequence, std::span(tokens).subspan(140));
  };
  NaiveBackend naive;
  const Logits want = shifted(naive);
  const Difference d = compare(shifted(*backend_), want);
  EXPECT_LE(d.largest, fp32_tolerance(config, 150, d.magnitude));
}

TEST_P(ForwardOn, PausesBetweenLayersAndComputesOnlyLogitsAskedFor) {
  const Config config = tiny_config({});
  const MemoryCheckpoint checkpoint(random_model(config, 37), DType::f32);
  const Llama model(*backend_, *checkpoint);
  const std::vector<int32_t> tokens = random_tokens(20, config.vocab_size, 1);
  const Logits all = all_logits(model, DType::f32, tokens);

  KvCache cache(*backend_, config, DType::f32, 1);
  KvSequence sequence(cache);
  sequence.reserve(20);
  Batch batch{tokens, {{0, 20, 0, sequence.blocks(), {}, 1}}, {3, 19}};
  Activations activations(*backend_, config, 32, 2);
  Forward pass(model, batch, cache, activations);
  for (int64_t steps = 0; steps <= config.n_layers; steps++) {
    EXPECT_FALSE(pass.done());
    pass.run(1);
  }
  EXPECT_TRUE(pass.done());
  const Tensor logits = activations.logits(2);
  for (int64_t i = 0; i < 2; i++) {
    const auto row =
        static_cast<size_t>(batch.logit_rows[static_cast<size_t>(i)] * config.vocab_size);
    const auto n = static_cast<size_t>(config.vocab_size);
    EXPECT_TRUE(same_bits({logits.row_as<float>(i), n}, std::span(all).subspan(row, n)));
  }
  batch.logit_rows.clear();
  forward(model, batch, cache, activations);  // fills the cache, and nothing else
}

TEST(Forward, RejectsTokensOutsideTheVocabularyAndBrokenBatches) {
  NaiveBackend backend;
  const Config config = tiny_config({});
  const MemoryCheckpoint checkpoint(random_model(config, 37), DType::f32);
  const Llama model(backend, *checkpoint);
  KvCache cache(backend, config, DType::f32, 2);
  KvSequence sequence(cache);
  sequence.reserve(70);
  Activations activations(backend, config, 80, 1);
  const Batch good{random_tokens(70, 50, 1), {{0, 70, 0, sequence.blocks(), {}, 1}}, {69}};
  forward(model, good, cache, activations);

  for (const int32_t token : {-1, 50}) {
    Batch bad = good;
    bad.tokens[3] = token;
    EXPECT_THROW(forward(model, bad, cache, activations), Error);
  }
  const auto broken = [&](auto change) {
    Batch bad = good;
    change(bad);
    EXPECT_THROW(forward(model, bad, cache, activations), std::logic_error);
  };
  const std::vector<int32_t> outside = {0, 2};
  const std::vector<double> frequencies(3);
  broken([](Batch& b) { b.segments[0].first_row = 1; });
  broken([](Batch& b) { b.segments[0].n_rows = 69; });
  broken([](Batch& b) { b.segments[0].past = -1; });
  broken([](Batch& b) { b.segments[0].kv_blocks = b.segments[0].kv_blocks.first(1); });
  broken([&](Batch& b) { b.segments[0].kv_blocks = outside; });
  broken([&](Batch& b) { b.segments[0].inv_freq = frequencies; });
  broken([](Batch& b) { b.segments.clear(); });
  broken([](Batch& b) { b.logit_rows = {70}; });
  broken([](Batch& b) { b.logit_rows = {1, 0}; });
  broken([](Batch& b) { b.tokens.resize(81), b.segments[0].n_rows = 81; });
}

}  // namespace
}  // namespace tinyllama::testing
