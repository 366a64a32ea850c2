// formats/: what is written is what is read, bit for bit, in every format and order of rows; the
// published files read as what they are.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "formats/hf_config.h"
#include "formats/hf_tokenizer.h"
#include "formats/safetensors.h"
#include "formats/sentencepiece_model.h"
#include "support/assets.h"
#include "support/fixtures.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

using namespace testing;

// ---- round trips ----

class RoundTrip : public ::testing::TestWithParam<std::tuple<DType, bool, bool>> {};

TEST_P(RoundTrip, FolderToGgufToFolder) {
  const auto [dtype, tied, interleaved] = GetParam();
  const TinyCheckpoint made(tiny_format_config(tied), dtype, interleaved);
  const TemporaryFolder folder;
  ThreadPool pool(2);
  write_hf_folder(*made, folder / "hf", dtype, pool, {});
  const Checkpoint hf = open_checkpoint(folder / "hf");
  write_gguf(hf, folder / "model.gguf", always(dtype), pool, {});
  const Checkpoint gguf = open_checkpoint(folder / "model.gguf");
  write_hf_folder(gguf, folder / "again", dtype, pool, {});
  const Checkpoint again = open_checkpoint(folder / "again");

  EXPECT_EQ(hf.format, "Hugging Face folder");
  EXPECT_EQ(gguf.format, "GGUF v3");
  EXPECT_TRUE(hf.notes.empty());
  EXPECT_TRUE(gguf.notes.empty()) << gguf.notes[0];
  EXPECT_EQ(hf.find("model.layers.0.self_attn.q_proj.weight")->interleaved_dim, 0);
  EXPECT_EQ(gguf.find("model.layers.0.self_attn.q_proj.weight")->interleaved_dim, 16);
  expect_same_vocab(*hf.vocab, *made->vocab);
  expect_same_vocab(*gguf.vocab, *made->vocab);
  expect_same_vocab(*again.vocab, *made->vocab);
  expect_same_model(hf, again);
  for (const auto& [name, tensor] : hf.tensors) {  // GGUF keeps norms in FP32, so values, not bits
    const NamedTensor& other = *gguf.find(name);
    ASSERT_EQ(other.view.rows, tensor.view.rows);
    std::vector<float> a(static_cast<size_t>(tensor.view.cols)), b(a.size());
    for (int64_t r = 0; r < tensor.view.rows; r++) {
      decode_row(tensor.view.dtype, tensor.row(r), a.data(), tensor.view.cols);
      decode_row(other.view.dtype, other.row(r), b.data(), tensor.view.cols);
      ASSERT_EQ(a, b) << name << " row " << r;
    }
  }
  EXPECT_EQ(again.generation.temperature, 0.7);
}

INSTANTIATE_TEST_SUITE_P(Types, RoundTrip,
                         ::testing::Combine(::testing::Values(DType::f32, DType::f16, DType::bf16),
                                            ::testing::Bool(), ::testing::Bool()));

// Quantized rows travel as they are, to the place that their row has in the other order.
TEST(RoundTrips, QuantizedRowsAreNeverEncodedAgain) {
  const TemporaryFolder folder;
  ThreadPool pool(1);
  for (const DType dtype : {DType::q4_0, DType::q8_0}) {
    for (const bool interleaved : {false, true}) {
      const TinyCheckpoint made(tiny_format_config(), dtype, interleaved);
      write_gguf(*made, folder / "q.gguf", always(dtype), pool, {});
      expect_same_model(*made, open_checkpoint(folder / "q.gguf"));
    }
  }
}

// The permutation itself, against its definition: row 2 i + h of a head in the file is row i + h *
// half.
TEST(RoundTrips, GgufHoldsPairsSideBySide) {
  const TinyCheckpoint made(tiny_format_config());
  const TemporaryFolder folder;
  ThreadPool pool(1);
  write_gguf(*made, folder / "m.gguf", always(DType::f32), pool, {});
  const MappedFile file(folder / "m.gguf");
  const Gguf gguf = parse_gguf(file.bytes(), "m.gguf");
  const GgufTensor& k = gguf.tensors.at("blk.1.attn_k.weight");
  const TensorView source = made->find("model.layers.1.self_attn.k_proj.weight")->view;
  for (int64_t head = 0; head < 2; head++) {
    for (int64_t i = 0; i < 8; i++) {
      for (int64_t h = 0; h < 2; h++) {
        const auto stored = static_cast<size_t>(head * 16 + 2 * i + h);
        EXPECT_EQ(
            std::memcmp(k.data.data() + stored * 64 * 4, source.row(head * 16 + i + h * 8), 256),
            0);
      }
    }
  }
}

TEST(RoundTrips, ProgressCountsBytesUpToTheTotal) {
  const TinyCheckpoint made(tiny_format_config());
  const TemporaryFolder folder;
  ThreadPool pool(1);
  uint64_t last = 0, total = 0, calls = 0;
  const Progress progress = [&](std::string_view, uint64_t done, uint64_t all) {
    EXPECT_GT(done, last);
    last = done, total = all, calls++;
  };
  write_hf_folder(*made, folder / "hf", DType::f32, pool, progress);
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, static_cast<uint64_t>(made->config.parameters()) * 4);
  last = 0;
  write_gguf(*made, folder / "m.gguf", always(DType::f16), pool, progress);
  EXPECT_EQ(last, total);
}

TEST(RoundTrips, FillRowsMakesTheSameFolder) {
  const TinyCheckpoint made(tiny_format_config());
  const TemporaryFolder folder;
  ThreadPool pool(1);
  write_hf_folder(*made, folder / "read", DType::bf16, pool, {});
  const FillRows fill = [&](const TensorSpec& spec, int64_t first, int64_t n, DType dtype,
                            std::byte* to) {
    for (int64_t r = 0; r < n; r++)
      encode_row(dtype, made->find(spec.name)->view.row_as<float>(first + r),
                 to + static_cast<size_t>(r) * row_bytes(dtype, spec.cols), spec.cols);
  };
  write_hf_folder(*made, fill, folder / "made", DType::bf16, {});
  for (const char* name : {"model.safetensors", "config.json", "tokenizer.json"})
    EXPECT_EQ(read_bytes(folder / "read/" + name), read_bytes(folder / "made/" + name)) << name;
}

// ---- configurations ----

std::string config_text(const std::string& more) {
  return R"({"vocab_size":300,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4)" +
         more + "}";
}

TEST(HfConfigs, Defaults) {
  const Config c = parse_hf_config(config_text(""), "config.json").config;
  EXPECT_EQ(c.n_kv_heads, 4);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.norm_eps, 1e-6);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_FALSE(c.tied_embeddings);
}

TEST(HfConfigs, RopeScalingsSurviveBothFormats) {
  const TemporaryFolder folder;
  ThreadPool pool(1);
  for (
      const char* text :
      {R"({"type":"linear","factor":2.5})", R"({"rope_type":"dynamic","factor":2.0})",
       R"({"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":64,"beta_fast":16.0,"truncate":false})",
       R"({"type":"yarn","factor":4.0,"attention_factor":1.2,"mscale":0.7,"mscale_all_dim":0.9})",
       R"({"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":64})"}) {
    Config config = tiny_format_config();
    config.rope_scaling = parse_rope_scaling(text, "test");
    ASSERT_NE(config.rope_scaling.kind, RopeScaling::Kind::none);
    EXPECT_EQ(parse_hf_config(make_hf_config(config, nullptr, DType::f32), "config.json").config,
              config);
    const TinyCheckpoint made(config);
    write_gguf(*made, folder / "m.gguf", always(DType::f32), pool, {});
    EXPECT_EQ(open_checkpoint(folder / "m.gguf").config, config) << text;
  }
  const Config five =
      parse_hf_config(
          config_text(R"(,"rope_parameters":{"rope_theta":5e5,"rope_type":"linear","factor":2.0})"),
          "c")
          .config;
  EXPECT_EQ(five.rope_theta, 5e5);
  EXPECT_EQ(five.rope_scaling.kind, RopeScaling::Kind::linear);
}

TEST(HfConfigs, OthersAreRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"(,"model_type":"mistral")", "model_type"},
      {R"(,"attention_bias":true)", "attention_bias"},
      {R"(,"mlp_bias":true)", "mlp_bias"},
      {R"(,"hidden_act":"gelu")", "hidden_act"},
      {R"(,"quantization_config":{"bits":4})", "quantize it here"},
      {R"(,"rope_scaling":{"type":"longrope","factor":2})", "longrope"},
      {R"(,"rope_scaling":{"type":"linear"})", "factor"},
      {R"(,"rope_scaling":[])", "rope_scaling"},
      {R"(,"num_key_value_heads":3)", "multiple"},
      {R"(,"head_dim":15)", "even"},
      {R"(,"head_dim":1000000)", "head_dim"},
      {R"(,"rms_norm_eps":-1)", "rms_norm_eps"},
      {R"(,"rope_theta":"big")", "rope_theta"},
      {R"(,"max_position_embeddings":1e400)", "JSON"},
      {R"(,"max_position_embeddings":18446744073709551615)", "out of range"},
      {R"(,"vocab_size":300)", "twice"}};
  for (const auto& example : cases) {
    const auto [more, want] = example;
    const std::string text = config_text(more);
    const std::string message = error_of([&] { parse_hf_config(text, "config.json"); });
    EXPECT_NE(message.find(want), std::string::npos) << more << ": " << message;
    EXPECT_NE(message.find("config.json"), std::string::npos) << message;
  }
}

TEST(Configs, PresetsAndParameters) {
  EXPECT_EQ(preset("tinyllama-1.1b").parameters(), 1100048384);
  EXPECT_EQ(preset("tinyllama-120m").parameters(), 121129728);
  EXPECT_EQ(preset("llama-2-7b").parameters(), 6738415616);
  EXPECT_EQ(preset("llama-2-13b").parameters(), 13015864320);
  EXPECT_EQ(preset("stories-15m").parameters(), 15191712);
  for (const std::string& name : preset_names()) validate(preset(name), name);
  EXPECT_NE(error_of([] { preset("gpt-2"); }).find("tinyllama-1.1b"), std::string::npos);
  for (const std::string& name : preset_names()) {
    int64_t sum = 0;
    for (const TensorSpec& spec : tensor_specs(preset(name))) sum += spec.rows * spec.cols;
    EXPECT_EQ(sum, preset(name).parameters()) << name;
  }
}

// ---- Llama 3's factors ----

TEST(RopeFactors, SolvedForTheParametersThatMadeThem) {
  for (const auto& [factor, low, high, original, theta, head_dim] :
       {std::tuple{8.0, 1.0, 4.0, 8192, 5e5, 128}, std::tuple{32.0, 1.0, 4.0, 8192, 5e5, 64},
        std::tuple{4.0, 1.0, 3.0, 2048, 1e4, 64}}) {
    Config config;
    config.head_dim = head_dim, config.rope_theta = theta;
    RopeScaling& s = config.rope_scaling;
    s.kind = RopeScaling::Kind::llama3;
    s.factor = factor, s.low_freq_factor = low, s.high_freq_factor = high,
    s.original_context = original;
    const RopeScaling solved = solve_llama3(llama3_factors(config), config, 0, "test");
    EXPECT_EQ(solved, s) << factor << " " << solved.low_freq_factor << " "
                         << solved.high_freq_factor << " " << solved.original_context;
  }
  Config config;
  EXPECT_EQ(solve_llama3(std::vector<float>(32, 1.0f), config, 0, "t").kind,
            RopeScaling::Kind::none);
  EXPECT_THROW(solve_llama3(std::vector<float>(31, 1.0f), config, 0, "t"), Error);
  EXPECT_THROW(solve_llama3(std::vector<float>(32, NAN), config, 0, "t"), Error);
  std::vector<float> zigzag(32, 1.0f);
  zigzag[3] = 7;
  EXPECT_THROW(solve_llama3(zigzag, config, 0, "t"), Error);
}

// ---- the published files ----

TEST(Assets, StoriesIsTheSameInThreeFormats) {
  TINYLLAMA_NEEDS_ASSET("assets/models/stories260K/stories260K.bin");
  const Checkpoint bin = open_checkpoint(asset("assets/models/stories260K/stories260K.bin"));
  const Checkpoint v1 =
      open_checkpoint(asset("assets/models/stories260K-gguf/tinyllamas-stories-260k-f32.gguf"));
  EXPECT_EQ(bin.format, "llama2.c");
  EXPECT_EQ(v1.format, "GGUF v1");
  EXPECT_EQ(bin.config, preset("stories-260k"));
  expect_same_model(bin, v1);
  const TemporaryFolder folder;
  ThreadPool pool(2);
  write_hf_folder(v1, folder / "hf", DType::f32, pool, {});
  const Checkpoint hf = open_checkpoint(folder / "hf");
  expect_same_model(bin, hf);
  write_gguf(hf, folder / "v3.gguf", always(DType::f32), pool, {});
  const Checkpoint v3 = open_checkpoint(folder / "v3.gguf");
  expect_same_model(bin, v3);
  for (const Checkpoint* other : {&v1, &hf, &v3}) {
    for (size_t id = 0; id < 512; id++) {
      EXPECT_EQ(bin.vocab->pieces[id].text, other->vocab->pieces[id].text);
      EXPECT_EQ(bin.vocab->pieces[id].type, other->vocab->pieces[id].type);
      EXPECT_EQ(bin.vocab->pieces[id].score, other->vocab->pieces[id].score);
    }
  }
}

TEST(Assets, OtherModels) {
  TINYLLAMA_NEEDS_ASSET("assets/models/llama-2-tiny-random/llama-2-tiny-random.gguf");
  const Checkpoint random =
      open_checkpoint(asset("assets/models/llama-2-tiny-random/llama-2-tiny-random.gguf"));
  EXPECT_EQ(random.find("model.embed_tokens.weight")->view.dtype, DType::f16);
  EXPECT_EQ(random.find("model.norm.weight")->view.dtype, DType::f32);
  EXPECT_FALSE(random.config.tied_embeddings);
  EXPECT_EQ(open_checkpoint(asset("assets/models/EN10-tok105/model5000.bin")).vocab->pieces.size(),
            105u);
  EXPECT_EQ(open_checkpoint(asset("assets/models/EN10-tok361/model5000.bin")).vocab->pieces.size(),
            361u);
  EXPECT_EQ(open_checkpoint(asset("assets/models/aidreams260K/aidreams260K.bin")).config.n_layers,
            4);
}

// Files beside a .bin that only look like its tokenizer, the model itself among them, do no harm.
TEST(Assets, TokenizersBesideABin) {
  TINYLLAMA_NEEDS_ASSET("assets/models/stories260K/stories260K.bin");
  const TemporaryFolder folder;
  const std::string from = asset("assets/models/stories260K/");
  std::filesystem::copy_file(from + "stories260K.bin", folder / "tok512.model.bin");
  Checkpoint alone = open_checkpoint(folder / "tok512.model.bin");
  EXPECT_FALSE(alone.vocab);
  EXPECT_EQ(alone.notes.size(), 2u);
  EXPECT_THROW(open_vocab(folder / "tok512.model.bin"), Error);
  std::filesystem::copy_file(from + "tok512.bin", folder / "tok512.bin");
  write_bytes(folder / "tokenizer.model", std::as_bytes(std::span("not a tokenizer")));
  EXPECT_TRUE(open_checkpoint(folder / "tok512.model.bin").vocab);
  EXPECT_EQ(open_vocab(folder / "tok512.model.bin").pieces.size(), 512u);
}

TEST(Assets, OneVocabularyInEveryFormat) {
  TINYLLAMA_NEEDS_ASSET("assets/tokenizer/tokenizer.model");
  const std::string root = asset("assets/tokenizer/");
  const Vocab model = open_vocab(root + "tokenizer.model");
  ASSERT_EQ(model.pieces.size(), 32000u);
  expect_same_vocab(model, open_vocab(root + "tokenizer.bin"));
  expect_same_vocab(model, open_vocab(root + "derived/tokenizer.json"));
  expect_same_vocab(model, open_vocab(root + "llama.cpp/ggml-vocab-llama-spm.gguf"));
  Vocab newer = open_vocab(root + "tinyllama-hf/tokenizer.json");
  EXPECT_FALSE(newer.prefix_after_special);
  EXPECT_EQ(newer.pieces[31353].type, PieceType::unused);  // this copy lost U+2028
  newer.pieces[31353] = model.pieces[31353];
  expect_same_vocab(model, newer);
  const Vocab dolma = open_vocab(root + "dolma/llama-test-tokenizer.json");
  ASSERT_EQ(dolma.pieces.size(), 32003u);
  EXPECT_EQ(dolma.pieces[32000].text, "|||EMAIL_ADDRESS|||");
  EXPECT_EQ(dolma.pieces[32000].type, PieceType::user_defined);
  EXPECT_TRUE(dolma.merges.empty());
  // And out again.
  const std::string written = make_sentencepiece(model);
  expect_same_vocab(model, parse_sentencepiece(std::as_bytes(std::span(written)), "written"));
}

TEST(Assets, SafetensorsSamplesAndOracle) {
  TINYLLAMA_NEEDS_ASSET("assets/models/safetensors-samples/candle-csm-voices.safetensors");
  const std::string root = asset("assets/models/safetensors-samples/");
  const Safetensors voices = open_safetensors(root + "candle-csm-voices.safetensors");
  EXPECT_EQ(voices.at("tokens").shape, (std::vector<int64_t>{1, 982, 33}));
  EXPECT_EQ(voices.at("tokens").to_i64().size(), 982u * 33);
  EXPECT_THROW(voices.at("tokens").to_f32(), Error);
  EXPECT_THROW(voices.at("nothing"), Error);
  EXPECT_EQ(open_safetensors(root + "trl-kto-lora-adapter_model.safetensors").metadata.at("format"),
            "pt");
  EXPECT_EQ(open_safetensors(root + "discollama-adapters.safetensors").entries.size(), 8u);
  const Checkpoint nano = open_checkpoint(asset("oracle/nano"));
  EXPECT_EQ(nano.config.hidden, 64);
  EXPECT_FALSE(nano.vocab);
  EXPECT_EQ(open_checkpoint(asset("oracle/nano-bf16")).find("lm_head.weight")->view.dtype,
            DType::bf16);
}

// ---- merges that scores cannot say ----

TEST(Merges, ListedOnesAreKept) {
  // Trained by Hugging Face's library: "abc" was learned as a + bc, never as ab + c.
  const std::string text = R"({"added_tokens": [{"id": 0, "content": "<unk>", "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
    "model": {"type": "BPE", "byte_fallback": false, "unk_token": "<unk>",
    "vocab": {"<unk>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5, "abc": 6},
    "merges": [["b", "c"], ["a", "bc"], ["a", "b"]]}})";
  const Vocab vocab = parse_tokenizer_json(text, "tokenizer.json");
  const std::vector<std::pair<TokenId, TokenId>> want = {{2, 3}, {1, 5}, {1, 2}};
  EXPECT_EQ(vocab.merges, want);
  EXPECT_GT(vocab.pieces[5].score, vocab.pieces[6].score);
  EXPECT_EQ(parse_tokenizer_json(make_tokenizer_json(vocab), "again").merges, want);

  Config config = tiny_format_config();
  config.vocab_size = 7;
  TinyCheckpoint made(config);
  made.get().vocab = vocab;
  const TemporaryFolder folder;
  ThreadPool pool(1);
  write_gguf(*made, folder / "m.gguf", always(DType::f32), pool, {});
  EXPECT_EQ(open_checkpoint(folder / "m.gguf").vocab->merges, want);
  write_hf_folder(*made, folder / "hf", DType::f32, pool, {});
  EXPECT_FALSE(std::filesystem::exists(folder / "hf/tokenizer.model"));
  EXPECT_EQ(open_checkpoint(folder / "hf").vocab->merges, want);
}

TEST(Safetensors, PlainArraysAndAlignment) {
  const TemporaryFolder folder;
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  write_safetensors(
      folder / "a.safetensors",
      std::vector<NamedArray>{{"x", {1, 2, 3}, values}, {"s", {}, std::span(values).first(1)}});
  const Safetensors read = open_safetensors(folder / "a.safetensors");
  EXPECT_EQ(read.at("x").to_f32(), values);
  EXPECT_EQ(read.at("s").elements(), 1);
  EXPECT_EQ(read.metadata.at("format"), "pt");
}

// A header of odd length puts every FP32 tensor at an odd address; the reader copies those.
TEST(Safetensors, MisalignedTensorsAreCopied) {
  const TinyCheckpoint made(tiny_format_config());
  const TemporaryFolder folder;
  ThreadPool pool(1);
  write_hf_folder(*made, folder / "hf", DType::f32, pool, {});
  auto bytes = read_bytes(folder / "hf/model.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  bytes.insert(bytes.begin() + 8 + static_cast<std::ptrdiff_t>(length), std::byte{' '});
  length++;
  std::memcpy(bytes.data(), &length, 8);
  write_bytes(folder / "hf/model.safetensors", bytes);
  const Checkpoint opened = open_checkpoint(folder / "hf");
  EXPECT_EQ(opened.copies.size(), opened.tensors.size());
  expect_same_model(*made, opened);
}

}  // namespace
}  // namespace tinyllama
