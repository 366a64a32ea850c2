// quantize/: the policy is llama.cpp's, the sizes are those of the published files, and what is
// written is what the encoders say.
#include "quantize/quantize.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "formats/gguf.h"
#include "support/assets.h"
#include "support/fixtures.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

using namespace testing;

uint64_t file_bytes(std::string_view type, const Config& config) {
  const DTypeChoice dtype_of = quantize_policy(type, config);
  uint64_t sum = 0;
  for (const TensorSpec& spec : tensor_specs(config))
    sum += static_cast<uint64_t>(spec.rows) * row_bytes(dtype_of(spec), spec.cols);
  return sum;
}

TEST(Policy, SizesOfThePublishedFiles) {
  // TheBloke's TinyLlama-1.1B-Chat-v1.0 files are 637.7, 668.8 and 1,170.8 MB with the
  // tokenizer's 1.7 MB.
  const Config config = preset("tinyllama-1.1b");
  EXPECT_EQ(file_bytes("q4_0", config), 635990016u);
  EXPECT_EQ(file_bytes("q4_k_m", config), 667078656u);
  EXPECT_EQ(file_bytes("q8_0", config), 1169072128u);
  EXPECT_EQ(file_bytes("f32", config), 4400193536u);
}

TEST(Policy, MoreBitsWhereLlamaCppGivesThem) {
  const Config config = preset("tinyllama-1.1b");
  const DTypeChoice dtype_of = quantize_policy("q4_k_m", config);
  std::string layers;
  for (const TensorSpec& spec : tensor_specs(config)) {
    if (spec.name.ends_with("v_proj.weight")) layers += dtype_of(spec) == DType::q6_k ? '6' : '4';
    if (spec.is_norm) {
      EXPECT_EQ(dtype_of(spec), DType::f32);
    }
    if (spec.name.ends_with("q_proj.weight")) {
      EXPECT_EQ(dtype_of(spec), DType::q4_k);
    }
    if (spec.name == "lm_head.weight") {
      EXPECT_EQ(dtype_of(spec), DType::q6_k);
    }
    if (spec.name == "model.embed_tokens.weight") {
      EXPECT_EQ(dtype_of(spec), DType::q4_k);
    }
  }
  EXPECT_EQ(layers, "6644644644644644644666");  // 22 layers: i < 2, i >= 19, (i - 2) % 3 == 2
  EXPECT_TRUE(quantize_notes("q4_k_m", config).empty());
}

TEST(Policy, TiedEmbeddingsServeAsTheHead) {
  Config config = preset("tinyllama-1.1b");
  config.tied_embeddings = true;
  EXPECT_EQ(quantize_policy("q4_0", config)(tensor_specs(config).front()), DType::q6_k);
}

TEST(Policy, OddRowsFallBackWithANote) {
  const Config config = preset("stories-260k");  // 64 wide, 172 inside
  const DTypeChoice dtype_of = quantize_policy("q4_k_m", config);
  for (const TensorSpec& spec : tensor_specs(config)) {
    if (spec.is_norm) continue;
    EXPECT_EQ(dtype_of(spec), spec.cols == 64 ? DType::q8_0 : DType::f16) << spec.name;
  }
  EXPECT_EQ(quantize_notes("q4_k_m", config).size(), 4u);
  EXPECT_THROW(quantize_policy("q5_k_m", config), Error);
}

TEST(QuantizeModel, FileHoldsWhatTheEncodersSay) {
  Config config = tiny_format_config();
  config.hidden = 256, config.intermediate = 512, config.n_heads = 16;
  const TinyCheckpoint made(config);
  const TemporaryFolder folder;
  ThreadPool pool(2);
  write_hf_folder(*made, folder / "hf", DType::f32, pool, {});
  const std::map<std::string, uint32_t> file_types = {
      {"q4_0", 2}, {"q8_0", 7}, {"q4_k_m", 15}, {"f16", 1}};
  for (const auto& [type, file_type] : file_types) {
    const std::string out = folder / (type + ".gguf");
    const QuantizeResult result = quantize_model(folder / "hf", out, type, pool, {});
    const Checkpoint got = open_checkpoint(out);
    EXPECT_EQ(result.bytes_after, got.tensor_bytes());
    EXPECT_EQ(result.bytes_before, made->tensor_bytes());
    EXPECT_TRUE(result.notes.empty());
    const DTypeChoice dtype_of = quantize_policy(type, config);
    for (const TensorSpec& spec : tensor_specs(config)) {
      const NamedTensor& tensor = *got.find(spec.name);
      ASSERT_EQ(tensor.view.dtype, dtype_of(spec)) << spec.name;
      std::vector<std::byte> want(row_bytes(tensor.view.dtype, spec.cols));
      for (int64_t r = 0; r < spec.rows; r++) {
        encode_row(tensor.view.dtype, made->find(spec.name)->view.row_as<float>(r), want.data(),
                   spec.cols);
        ASSERT_EQ(std::memcmp(tensor.row(r), want.data(), want.size()), 0) << spec.name << " " << r;
      }
    }
    const Gguf gguf = parse_gguf(got.files[0]->bytes(), out);
    EXPECT_EQ(gguf.integer("general.file_type"), file_type);
    EXPECT_EQ(gguf.integer("general.quantization_version").value_or(0), type == "f16" ? 0 : 2);
  }
}

TEST(QuantizeModel, ThreadsDoNotChangeTheFile) {
  Config config = tiny_format_config();
  config.hidden = 256, config.intermediate = 512, config.n_heads = 16;
  const TinyCheckpoint made(config, DType::bf16);
  const TemporaryFolder folder;
  ThreadPool one(1), three(3);
  write_gguf(*made, folder / "in.gguf", [](const TensorSpec&) { return DType::bf16; }, one, {});
  quantize_model(folder / "in.gguf", folder / "a.gguf", "q4_k_m", one, {});
  quantize_model(folder / "in.gguf", folder / "b.gguf", "q4_k_m", three, {});
  EXPECT_EQ(read_bytes(folder / "a.gguf"), read_bytes(folder / "b.gguf"));
}

TEST(QuantizeModel, SecondQuantizationIsPointedOut) {
  const TinyCheckpoint made(tiny_format_config());
  const TemporaryFolder folder;
  ThreadPool pool(1);
  write_gguf(*made, folder / "a.gguf", quantize_policy("q8_0", made->config), pool, {});
  const QuantizeResult result =
      quantize_model(folder / "a.gguf", folder / "b.gguf", "q4_0", pool, {});
  ASSERT_FALSE(result.notes.empty());
  EXPECT_NE(result.notes.back().find("quantized before"), std::string::npos);
}

TEST(QuantizeModel, UnknownTypesAndMissingFilesLeaveNothingBehind) {
  const TemporaryFolder folder;
  ThreadPool pool(1);
  EXPECT_THROW(quantize_model(folder / "none", folder / "out.gguf", "q4_0", pool, {}), Error);
  EXPECT_THROW(quantize_model(folder / "none", folder / "out.gguf", "q9", pool, {}), Error);
  EXPECT_FALSE(std::filesystem::exists(folder / "out.gguf"));
}

}  // namespace
}  // namespace tinyllama
