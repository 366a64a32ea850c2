// The promise that numbers do not depend on company: a sequence's logits are the same bits alone or
// in a batch, prefilled at once or in chunks, on any number of threads, verified or decoded; for
// every weight type and instruction set. Equality here is memcmp.
#include <gtest/gtest.h>

#include <array>
#include <tuple>
#include <utility>

#include "support/backends.h"
#include "support/run_model.h"
#include "support/tiny_model.h"

namespace tinyllama::testing {
namespace {

constexpr std::array<DType, 7> kTypes = {DType::f32,  DType::f16,  DType::bf16, DType::q4_0,
                                         DType::q8_0, DType::q4_k, DType::q6_k};

class OnIsaAndType : public ::testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  std::string isa() const { return std::get<0>(GetParam()); }
  DType type() const { return std::get<1>(GetParam()); }
  bool slow() const { return isa() == "scalar"; }
};

std::string name_of(const ::testing::TestParamInfo<OnIsaAndType::ParamType>& test) {
  return std::get<0>(test.param) + "_" + std::string(traits(std::get<1>(test.param)).name);
}

INSTANTIATE_TEST_SUITE_P(Cpu, OnIsaAndType,
                         ::testing::Combine(::testing::ValuesIn(cpu_isas()),
                                            ::testing::ValuesIn(kTypes)),
                         name_of);

// Wide enough for one K-quant block, a vocabulary that fills no tile, three query heads a kv head.
Config block_config() {
  return tiny_config({.hidden = 256,
                      .intermediate = 512,
                      .n_layers = 2,
                      .n_heads = 6,
                      .n_kv_heads = 2,
                      .head_dim = 128,
                      .vocab = 67,
                      .context = 2048});
}

DType kv_type_for(DType weights) {
  return traits(weights).quantized ? DType::f16 : weights;
}

// ---- The model

// Logits of `tokens` in pieces of `chunk`, each step together with a decoding and a prefilling
// stranger.
Logits in_company(const Llama& model, DType kv, std::span<const int32_t> tokens, size_t chunk) {
  const int64_t vocab = model.config().vocab_size;
  const auto n = static_cast<int64_t>(tokens.size());
  const std::vector<int32_t> others = random_tokens(4 * n, vocab, 77);
  KvCache cache(model.backend(), model.config(), kv, 16 + 6 * KvCache::blocks_for(n));
  KvSequence decoding(cache), ours(cache);
  step(model, cache, decoding, std::span(others).first(90));
  Logits result;
  for (size_t done = 0; done < tokens.size();) {
    const size_t take = std::min(chunk, tokens.size() - done);
    KvSequence prefilling(cache);
    const Piece pieces[] = {
        {&decoding, std::span(others).subspan(static_cast<size_t>(decoding.length()), 1)},
        {&ours, tokens.subspan(done, take)},
        {&prefilling, std::span(others).subspan(done, 1 + done % 37)}};
    const Logits logits = step(model, cache, pieces);
    const auto first = logits.begin() + vocab;
    result.insert(result.end(), first, first + static_cast<std::ptrdiff_t>(take) * vocab);
    done += take;
  }
  return result;
}

// Each round verifies a draft of `n_draft` tokens of which the last half are wrong, and rolls back.
Logits by_verification(const Llama& model, DType kv, std::span<const int32_t> tokens, size_t prompt,
                       size_t n_draft) {
  const auto vocab = static_cast<std::ptrdiff_t>(model.config().vocab_size);
  KvCache cache(model.backend(), model.config(), kv,
                1 + KvCache::blocks_for(static_cast<int64_t>(tokens.size() + n_draft)));
  KvSequence sequence(cache);
  Logits result = step(model, cache, sequence, tokens.first(prompt));
  for (size_t done = prompt; done < tokens.size();) {
    const size_t right = std::min(n_draft - n_draft / 2, tokens.size() - done);
    std::vector<int32_t> draft(n_draft, 5);
    std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(done), right, draft.begin());
    const Logits logits = step(model, cache, sequence, draft);
    result.insert(result.end(), logits.begin(),
                  logits.begin() + static_cast<std::ptrdiff_t>(right) * vocab);
    done += right;
    sequence.truncate(static_cast<int64_t>(done));
  }
  return result;
}

// `n` tokens; small steps, of which there would be many, over the first `n_small` of them only.
void expect_one_answer(const std::string& isa, const MemoryCheckpoint& checkpoint, DType kv,
                       size_t n, size_t n_small) {
  std::vector<std::unique_ptr<Backend>> backends;
  std::vector<std::unique_ptr<Llama>> models;  // [i] on i + 1 threads
  for (int threads = 1; threads <= 3; threads++) {
    backends.push_back(make_backend(isa, threads));
    models.push_back(std::make_unique<Llama>(*backends.back(), *checkpoint));
  }
  const int64_t vocab = models[0]->config().vocab_size;
  const std::vector<int32_t> tokens = random_tokens(static_cast<int64_t>(n), vocab, 41);
  const auto some = std::span(tokens).first(n_small);
  const Logits want = all_logits(*models[0], kv, tokens);
  const auto expect_same = [&](const Logits& got, const std::string& how) {
    EXPECT_TRUE(same_bits(got, std::span(want).first(std::min(got.size(), want.size())))) << how;
  };
  for (const size_t threads : {2, 3}) {
    expect_same(all_logits(*models[threads - 1], kv, tokens), std::to_string(threads) + " threads");
  }
  const std::pair<size_t, size_t> chunks[] = {{1, 1}, {3, 2}, {17, 3}, {64, 2}, {100, 1}, {512, 3}};
  for (const auto& [chunk, threads] : chunks) {
    const std::span<const int32_t> part = chunk < 64 ? some : std::span(tokens);
    expect_same(all_logits(*models[threads - 1], kv, part, static_cast<int64_t>(chunk)),
                "chunks of " + std::to_string(chunk) + ", threads " + std::to_string(threads));
  }
  for (const size_t chunk : {7, 33, 128}) {
    expect_same(in_company(*models[chunk % 3], kv, some, chunk),
                "in company, chunks of " + std::to_string(chunk));
  }
  for (const size_t n_draft : {2, 5, 16}) {
    expect_same(by_verification(*models[n_draft % 2], kv, tokens, n - 30, n_draft),
                "drafts of " + std::to_string(n_draft));
  }
}

TEST_P(OnIsaAndType, OneAnswerForEveryWayToAsk) {
  const reference::Model weights = random_model(block_config(), 3);
  expect_one_answer(isa(), MemoryCheckpoint(weights, type()), kv_type_for(type()),
                    slow() ? 110 : 530, 110);
}

class OnIsa : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Cpu, OnIsa, ::testing::ValuesIn(cpu_isas()),
                         [](const auto& isa) { return isa.param; });

// What q4_k_m files look like: values and down projections in another type than their neighbours.
TEST_P(OnIsa, MixedTypesInOneProduct) {
  const auto mixed = [](const TensorSpec& spec) {
    const bool wide = spec.name.find("v_proj") != std::string::npos ||
                      spec.name.find("down_proj") != std::string::npos;
    return wide ? DType::q6_k : DType::q4_k;
  };
  const reference::Model weights = random_model(block_config(), 4);
  expect_one_answer(GetParam(), MemoryCheckpoint(weights, mixed), DType::f16, 110, 70);
}

// Attention's reduction tree over more than two splits of 512 keys, for each type of cache.
TEST_P(OnIsa, ContextsAcrossAttentionSplits) {
  const Config config = tiny_config({.n_layers = 1, .context = 2048});
  const MemoryCheckpoint checkpoint(random_model(config, 5), DType::f32);
  for (const DType kv : {DType::f32, DType::f16, DType::bf16, DType::q8_0}) {
    SCOPED_TRACE(traits(kv).name);
    expect_one_answer(GetParam(), checkpoint, kv, 1100, 1100);
  }
}

// ---- The product, at the sizes of the real model

// Weights (rows, cols) of any type in little memory: row r starts r blocks into one stream.
struct StaggeredWeights {
  std::vector<std::byte> stream;
  TensorView view;

  StaggeredWeights(DType dtype, int64_t rows, int64_t cols) {
    const DTypeTraits& t = traits(dtype);
    const int64_t elements = cols + (rows - 1) * t.block_size;
    // The stream repeats after a prime number of blocks: encoding K-quants is slow.
    const int64_t period = std::min<int64_t>(elements / t.block_size, 1009) * t.block_size;
    const std::vector<float> values = random_floats(static_cast<size_t>(period), 51);
    std::vector<std::byte> once(row_bytes(dtype, period));
    encode_row(dtype, values.data(), once.data(), period);
    stream.resize(row_bytes(dtype, elements));
    for (size_t i = 0; i < stream.size(); i++) stream[i] = once[i % once.size()];
    view = TensorView(stream.data(), dtype, rows, cols, static_cast<size_t>(t.block_bytes));
  }
};

// y = x W^T for `n` columns of which column c is x[c % distinct], started from 0.5 when
// accumulating.
std::vector<float> product(Backend& backend, const Packed& w, const std::vector<float>& x,
                           int64_t distinct, int64_t first, int64_t n, bool accumulate) {
  std::vector<float> in(static_cast<size_t>(n * w.cols)),
      out(static_cast<size_t>(n * w.rows), 0.5f);
  for (int64_t c = 0; c < n; c++) {
    std::copy_n(x.begin() + (first + c) % distinct * w.cols, w.cols, in.begin() + c * w.cols);
  }
  backend.linear(w, TensorView(reinterpret_cast<std::byte*>(in.data()), DType::f32, n, w.cols),
                 Tensor(reinterpret_cast<std::byte*>(out.data()), DType::f32, n, w.rows),
                 accumulate);
  return out;
}

// Every column of every product is what the column gives alone, on one thread.
void expect_columns_alone(const std::string& isa, DType dtype, int64_t rows, int64_t cols,
                          const std::vector<int64_t>& widths) {
  constexpr int64_t kDistinct = 17;
  std::vector<std::unique_ptr<Backend>> backends;
  for (int threads = 1; threads <= 3; threads++) backends.push_back(make_backend(isa, threads));
  const StaggeredWeights weights(dtype, rows, cols);
  const PackPart part{weights.view, 0};
  const auto packed = backends[1]->pack({&part, 1});  // one layout, whatever the threads
  const std::vector<float> x = random_floats(static_cast<size_t>(kDistinct * cols), 52, 3);

  const int64_t widest = *std::max_element(widths.begin(), widths.end());
  for (const bool accumulate : {false, true}) {
    std::vector<std::vector<float>> alone;
    for (int64_t c = 0; c < std::min(kDistinct, widest); c++) {
      alone.push_back(product(*backends[0], *packed, x, kDistinct, c, 1, accumulate));
    }
    for (const int64_t n : widths) {
      Backend& backend = *backends[static_cast<size_t>(n % 3)];
      const std::vector<float> together = product(backend, *packed, x, kDistinct, 0, n, accumulate);
      for (int64_t c = 0; c < n; c++) {
        const auto column =
            std::span(together).subspan(static_cast<size_t>(c * rows), size_t(rows));
        ASSERT_TRUE(same_bits(column, alone[static_cast<size_t>(c % kDistinct)]))
            << "column " << c << " of " << n << ", accumulate " << accumulate;
      }
    }
    if (rows > 10000) break;  // accumulation is the same at every height
  }
}

std::vector<int64_t> all_widths() {
  std::vector<int64_t> widths = {31, 32, 33, 100};
  for (int64_t n = 1; n <= 17; n++) widths.push_back(n);
  return widths;
}

TEST_P(OnIsaAndType, ColumnsOfTheHiddenSize) {
  expect_columns_alone(isa(), type(), slow() ? 83 : 2563, 2048, all_widths());
}

TEST_P(OnIsaAndType, ColumnsOfTheIntermediateSize) {
  expect_columns_alone(isa(), type(), slow() ? 83 : 2048, 5632, all_widths());
}

TEST_P(OnIsaAndType, ColumnsOfTheHead) {
  const std::vector<int64_t> few = {1, 2, 3};
  expect_columns_alone(isa(), type(), 32000, 2048, slow() ? few : all_widths());
}

}  // namespace
}  // namespace tinyllama::testing
