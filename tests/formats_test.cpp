// formats/: what is written is what is read, bit for bit, in every format and order of rows; what
// Transformers needs of a folder is all there; the published files read as what they are.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "formats/hf_config.h"
#include "formats/hf_folder.h"
#include "formats/hf_tokenizer.h"
#include "formats/llama2c.h"
#include "formats/safetensors.h"
#include "formats/sentencepiece_model.h"
#include "support/assets.h"
#include "support/fixtures.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

using namespace testing;
using nlohmann::json;

DTypeChoice always(DType dtype) {
  return [dtype](const TensorSpec&) { return dtype; };
}

json read_json(const std::string& path) {
  return json::parse(read_text_file(path));
}

// The message of the Error that `action` throws.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

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

// ---- what Transformers needs ----

void expect_weights_for_transformers(const std::string& path, const Config& c, const char* dtype) {
  const auto bytes = read_bytes(path);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  const json header =
      json::parse(std::string(reinterpret_cast<const char*>(bytes.data()) + 8, length));
  EXPECT_EQ(header.at("__metadata__"), json({{"format", "pt"}}));
  std::map<std::string, std::vector<int64_t>> want = {
      {"model.embed_tokens.weight", {c.vocab_size, c.hidden}},
      {"model.norm.weight", {c.hidden}},
      {"lm_head.weight", {c.vocab_size, c.hidden}}};
  for (int64_t i = 0; i < c.n_layers; i++) {
    const std::string layer = "model.layers." + std::to_string(i);
    want[layer + ".self_attn.q_proj.weight"] = {c.q_dim(), c.hidden};
    want[layer + ".self_attn.k_proj.weight"] = {c.kv_dim(), c.hidden};
    want[layer + ".self_attn.v_proj.weight"] = {c.kv_dim(), c.hidden};
    want[layer + ".self_attn.o_proj.weight"] = {c.hidden, c.q_dim()};
    want[layer + ".mlp.gate_proj.weight"] = {c.intermediate, c.hidden};
    want[layer + ".mlp.up_proj.weight"] = {c.intermediate, c.hidden};
    want[layer + ".mlp.down_proj.weight"] = {c.hidden, c.intermediate};
    want[layer + ".input_layernorm.weight"] = {c.hidden};
    want[layer + ".post_attention_layernorm.weight"] = {c.hidden};
  }
  EXPECT_EQ(header.size(), want.size() + 1);
  uint64_t covered = 0;
  for (const auto& [name, shape] : want) {
    const json& entry = header.at(name);
    EXPECT_EQ(entry.size(), 3u);
    EXPECT_EQ(entry.at("dtype"), dtype);
    EXPECT_EQ(entry.at("shape").get<std::vector<int64_t>>(), shape) << name;
    covered +=
        entry.at("data_offsets")[1].get<uint64_t>() - entry.at("data_offsets")[0].get<uint64_t>();
  }
  EXPECT_EQ(8 + length + covered, bytes.size());
}

TEST(Transformers, EveryFileNameAndKey) {
  Config config = tiny_format_config();
  config.norm_eps = 1e-5;
  const TinyCheckpoint made(config);
  const TemporaryFolder folder;
  ThreadPool pool(1);
  write_hf_folder(*made, folder / "hf", DType::bf16, pool, {});
  std::set<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "hf"))
    files.insert(entry.path().filename().string());
  EXPECT_EQ(files,
            (std::set<std::string>{"config.json", "generation_config.json", "model.safetensors",
                                   "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
                                   "tokenizer_config.json"}));
  expect_weights_for_transformers(folder / "hf/model.safetensors", config, "BF16");

  const json want = {{"architectures", {"LlamaForCausalLM"}},
                     {"attention_bias", false},
                     {"attention_dropout", 0.0},
                     {"bos_token_id", 1},
                     {"eos_token_id", 2},
                     {"head_dim", 16},
                     {"hidden_act", "silu"},
                     {"hidden_size", 64},
                     {"initializer_range", 0.02},
                     {"intermediate_size", 96},
                     {"max_position_embeddings", 128},
                     {"mlp_bias", false},
                     {"model_type", "llama"},
                     {"num_attention_heads", 4},
                     {"num_hidden_layers", 2},
                     {"num_key_value_heads", 2},
                     {"pretraining_tp", 1},
                     {"rms_norm_eps", 1e-5},
                     {"rope_scaling", nullptr},
                     {"rope_theta", 10000.0},
                     {"tie_word_embeddings", false},
                     {"torch_dtype", "bfloat16"},
                     {"transformers_version", "4.35.0"},
                     {"use_cache", true},
                     {"vocab_size", 300}};
  EXPECT_EQ(read_json(folder / "hf/config.json"), want);

  const json generation = read_json(folder / "hf/generation_config.json");
  EXPECT_EQ(generation.at("eos_token_id"), json({2, 299}));
  EXPECT_EQ(generation.at("bos_token_id"), 1);
  EXPECT_EQ(generation.at("do_sample"), true);
  EXPECT_EQ(generation.at("temperature"), 0.7);

  const json map = read_json(folder / "hf/special_tokens_map.json");
  EXPECT_EQ(map.at("eos_token").at("content"), "</s>");
  EXPECT_EQ(map.at("unk_token").at("content"), "<unk>");
  EXPECT_EQ(map.at("bos_token").at("lstrip"), false);
}

TEST(Transformers, TokenizerFiles) {
  const TinyCheckpoint made(tiny_format_config());
  const TemporaryFolder folder;
  ThreadPool pool(1);
  write_hf_folder(*made, folder / "hf", DType::f32, pool, {});
  const json config = read_json(folder / "hf/tokenizer_config.json");
  EXPECT_EQ(config.at("tokenizer_class"), "LlamaTokenizer");
  EXPECT_EQ(config.at("add_bos_token"), true);
  EXPECT_EQ(config.at("add_eos_token"), false);
  EXPECT_EQ(config.at("bos_token"), "<s>");
  EXPECT_EQ(config.at("eos_token"), "</s>");
  EXPECT_EQ(config.at("unk_token"), "<unk>");
  EXPECT_EQ(config.at("pad_token"), nullptr);
  EXPECT_EQ(config.at("legacy"), true);
  EXPECT_EQ(config.at("model_max_length"), 128);
  EXPECT_EQ(config.at("clean_up_tokenization_spaces"), false);
  EXPECT_EQ(config.at("chat_template"), made->vocab->chat_template);
  EXPECT_EQ(config.at("added_tokens_decoder").at("299").at("content"), "<|im_end|>");
  EXPECT_EQ(config.at("added_tokens_decoder").at("299").at("special"), true);

  const json tokenizer = read_json(folder / "hf/tokenizer.json");
  EXPECT_EQ(tokenizer.at("version"), "1.0");
  EXPECT_EQ(tokenizer.at("added_tokens").size(), 4u);
  EXPECT_EQ(tokenizer.at("normalizer").at("normalizers")[0].at("type"), "Prepend");
  EXPECT_EQ(tokenizer.at("pre_tokenizer"), nullptr);
  EXPECT_EQ(tokenizer.at("post_processor").at("single")[0].at("SpecialToken").at("id"), "<s>");
  const json& model = tokenizer.at("model");
  EXPECT_EQ(model.at("type"), "BPE");
  EXPECT_EQ(model.at("byte_fallback"), true);
  EXPECT_EQ(model.at("fuse_unk"), true);
  EXPECT_EQ(model.at("unk_token"), "<unk>");
  EXPECT_EQ(model.at("vocab").size(), 300u);
  EXPECT_EQ(model.at("vocab").at("<|im_end|>"), 299);
  EXPECT_EQ(model.at("merges")[0], "\xE2\x96\x81 t");
}

// The canonical Llama tokenizer.json, made again from tokenizer.model: the same document.
TEST(Transformers, TokenizerJsonIsTheConvertersOwn) {
  TINYLLAMA_NEEDS_ASSET("assets/tokenizer/derived/tokenizer.json");
  const json want = read_json(asset("assets/tokenizer/derived/tokenizer.json"));
  const Vocab vocab = open_vocab(asset("assets/tokenizer/tokenizer.model"));
  json got = json::parse(make_tokenizer_json(vocab));
  EXPECT_EQ(got.at("model").at("merges"), want.at("model").at("merges"));  // all 61,249, in order
  EXPECT_EQ(got.at("model"), want.at("model"));
  for (json& token : got.at("added_tokens")) token["normalized"] = true;  // differs by version
  EXPECT_EQ(got, want);
}

TEST(Transformers, LargeModelsAreSharded) {
  const TinyCheckpoint made(tiny_format_config());
  const TemporaryFolder folder;
  const FillRows fill = [&](const TensorSpec& spec, int64_t first, int64_t n, DType dtype,
                            std::byte* to) {
    const TensorView& view = made->find(spec.name)->view;
    std::memcpy(to, view.row(first), static_cast<size_t>(n) * row_bytes(dtype, spec.cols));
  };
  const uint64_t limit = 300 * 64 * 4 + 100;  // the embeddings and their first norm fill one
  write_hf_folder(*made, fill, folder / "big", DType::f32, {}, limit);
  const json index = read_json(folder / "big/model.safetensors.index.json");
  std::set<std::string> files;
  for (const auto& [name, file] : index.at("weight_map").items()) files.insert(file);
  const std::string n = "-of-0000" + std::to_string(files.size()) + ".safetensors";
  EXPECT_EQ(*files.begin(), "model-00001" + n);
  EXPECT_EQ(index.at("weight_map").at("model.embed_tokens.weight"), "model-00001" + n);
  EXPECT_EQ(index.at("weight_map").size(), made->tensors.size());
  EXPECT_EQ(index.at("metadata").at("total_size"), made->config.parameters() * 4);
  EXPECT_FALSE(std::filesystem::exists(folder / "big/model.safetensors"));
  for (const std::string& file : files)
    EXPECT_LE(std::filesystem::file_size(folder / ("big/" + file)), limit + 2000);
  const Checkpoint opened = open_checkpoint(folder / "big");
  EXPECT_EQ(opened.files.size(), files.size());
  expect_same_model(*made, opened);
}

// ---- shards, odd folders ----

// Rewrites the folder's one file as two with an index.
void split_in_two(const std::string& folder) {
  const Safetensors all = open_safetensors(folder + "/model.safetensors");
  std::vector<SafetensorsItem> parts[2];
  std::map<std::string, std::string> index;
  for (const auto& [name, entry] : all.entries) {
    const size_t part = index.size() % 2;
    index[name] = part == 0 ? "a.safetensors" : "b.safetensors";
    parts[part].push_back({name, *entry.float_type(), entry.shape,
                           [data = entry.data](AtomicFile& out) { out.write(data); }});
  }
  write_safetensors(folder + "/a.safetensors", parts[0]);
  write_safetensors(folder + "/b.safetensors", parts[1]);
  std::filesystem::remove(folder + "/model.safetensors");
  AtomicFile file(folder + "/model.safetensors.index.json");
  file.write(make_weight_index(index, 1));
  file.commit();
}

class Folder : public ::testing::Test {
 protected:
  void SetUp() override { write_hf_folder(*made, folder / "hf", DType::f32, pool, {}); }
  void put(const std::string& name, const std::string& text) {
    write_bytes(folder / ("hf/" + name), std::as_bytes(std::span(text)));
  }
  std::string open_error() {
    return error_of([&] { open_checkpoint(folder / "hf"); });
  }

  TemporaryFolder folder;
  ThreadPool pool{1};
  TinyCheckpoint made{tiny_format_config()};
};

TEST_F(Folder, Sharded) {
  const Checkpoint whole = open_checkpoint(folder / "hf");
  split_in_two(folder / "hf");
  const Checkpoint parts = open_checkpoint(folder / "hf");
  EXPECT_EQ(parts.files.size(), 2u);
  expect_same_model(*made, parts);
  put("model.safetensors.index.json", R"({"weight_map": {"x": "../secret.safetensors"}})");
  EXPECT_NE(open_error().find("same folder"), std::string::npos) << open_error();
}

TEST_F(Folder, SingleFileGivenByName) {
  expect_same_model(*made, open_checkpoint(folder / "hf/model.safetensors"));
}

TEST_F(Folder, PicklesAreNamedWithTheRemedy) {
  std::filesystem::remove(folder / "hf/model.safetensors");
  EXPECT_NE(open_error().find("want model.safetensors"), std::string::npos) << open_error();
  put("pytorch_model.bin", "PK\x03\x04");
  EXPECT_NE(open_error().find("convert it to model.safetensors"), std::string::npos)
      << open_error();
  EXPECT_NE(error_of([&] { open_checkpoint(folder / "hf/pytorch_model.bin"); }).find("convert"),
            std::string::npos);
}

TEST_F(Folder, WrongShapesAreNamed) {
  json config = read_json(folder / "hf/config.json");
  config["num_key_value_heads"] = 4;
  put("config.json", config.dump());
  EXPECT_EQ(open_error(),
            "[load] model.layers.0.self_attn.k_proj.weight: want (64, 64), got (32, 64) in "
            "model.safetensors");
}

TEST_F(Folder, MissingExtraAndBias) {
  const Safetensors all = open_safetensors(folder / "hf/model.safetensors");
  const auto rewrite = [&](const std::string& without, const std::string& extra) {
    std::vector<SafetensorsItem> items;
    for (const auto& [name, entry] : all.entries) {
      if (name == without) continue;
      items.push_back({name, DType::f32, entry.shape,
                       [data = entry.data](AtomicFile& out) { out.write(data); }});
    }
    const std::vector<std::byte> four(16);
    if (!extra.empty())
      items.push_back({extra, DType::f32, {4}, [four](AtomicFile& out) { out.write(four); }});
    write_safetensors(folder / "hf/model.safetensors", items);
  };
  rewrite("model.norm.weight", "");
  EXPECT_NE(open_error().find("model.norm.weight: want (1, 64), but there is no such tensor"),
            std::string::npos)
      << open_error();
  rewrite("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq");
  const Checkpoint opened = open_checkpoint(folder / "hf");
  EXPECT_TRUE(opened.config.tied_embeddings);
  EXPECT_EQ(opened.notes.size(), 2u);
  rewrite("", "model.layers.0.self_attn.q_proj.bias");
  EXPECT_NE(open_error().find("biases are not supported"), std::string::npos) << open_error();
}

TEST_F(Folder, TiedModelsIgnoreAStoredHead) {
  json config = read_json(folder / "hf/config.json");
  config["tie_word_embeddings"] = true;
  put("config.json", config.dump());
  EXPECT_EQ(open_checkpoint(folder / "hf").find("lm_head.weight"), nullptr);
}

TEST_F(Folder, TokenizerJsonAloneGivesTheSameVocabulary) {
  const Checkpoint with_model = open_checkpoint(folder / "hf");
  std::filesystem::remove(folder / "hf/tokenizer.model");
  const Checkpoint with_json = open_checkpoint(folder / "hf");
  expect_same_vocab(*with_model.vocab, *with_json.vocab);
}

TEST_F(Folder, AddedTokensExtendTokenizerModel) {
  Vocab vocab = tiny_vocab();
  vocab.pieces.pop_back(), vocab.extra_eos.clear();  // without <|im_end|>
  put("tokenizer.model", make_sentencepiece(vocab));
  expect_same_vocab(*open_checkpoint(folder / "hf").vocab,
                    *made->vocab);     // from added_tokens_decoder
  put("tokenizer_config.json", "{}");  // and from tokenizer.json
  EXPECT_EQ(open_checkpoint(folder / "hf").vocab->extra_eos,
            std::vector<TokenId>{299});  // tokenizer.json
  std::filesystem::remove(folder / "hf/tokenizer.json");
  put("added_tokens.json", R"({"<|im_end|>": 299})");
  EXPECT_EQ(open_checkpoint(folder / "hf").vocab->pieces[299].type, PieceType::control);
  put("added_tokens.json", R"({"<|im_end|>": 300000})");
  EXPECT_NE(open_error().find("far behind"), std::string::npos);
}

TEST_F(Folder, WhereThePrefixGoesSurvives) {
  made.get().vocab->prefix_after_special = false;
  made.get().vocab->unk_surface = "?";
  write_hf_folder(*made, folder / "hf", DType::f32, pool, {});
  EXPECT_FALSE(open_checkpoint(folder / "hf").vocab->prefix_after_special);  // both files
  EXPECT_EQ(open_checkpoint(folder / "hf").vocab->unk_surface, "?");
  write_gguf(*made, folder / "m.gguf", always(DType::f32), pool, {});
  EXPECT_FALSE(open_checkpoint(folder / "m.gguf").vocab->prefix_after_special);
  std::filesystem::remove(folder / "hf/tokenizer.model");
  EXPECT_FALSE(open_checkpoint(folder / "hf").vocab->prefix_after_special);
}

TEST_F(Folder, StrayTokensAreDroppedAndMissingOnesAreUnused) {
  Vocab vocab = tiny_vocab();
  vocab.pieces.push_back({"[STRAY]", 0, PieceType::control});
  put("tokenizer.model", make_sentencepiece(vocab));
  const Checkpoint opened = open_checkpoint(folder / "hf");
  EXPECT_EQ(opened.vocab->pieces.size(), 300u);
  ASSERT_EQ(opened.notes.size(), 1u);
  EXPECT_NE(opened.notes[0].find("301 pieces"), std::string::npos);
}

TEST_F(Folder, ChatTemplatesByName) {
  put("tokenizer_config.json",
      R"({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})");
  EXPECT_EQ(open_checkpoint(folder / "hf").vocab->chat_template, "D");
  put("chat_template.jinja", "J");
  EXPECT_EQ(open_checkpoint(folder / "hf").vocab->chat_template, "J");
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
