// A Hugging Face folder: what is written is all that Transformers needs, name by name; odd folders
// are read or refused with the remedy.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "formats/checkpoint.h"
#include "formats/hf_config.h"
#include "formats/hf_folder.h"
#include "formats/hf_tokenizer.h"
#include "formats/safetensors.h"
#include "formats/sentencepiece_model.h"
#include "support/assets.h"
#include "support/fixtures.h"

namespace tinyllama {
namespace {

using namespace testing;
using nlohmann::json;

json read_json(const std::string& path) {
  return json::parse(read_text_file(path));
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

}  // namespace
}  // namespace tinyllama
