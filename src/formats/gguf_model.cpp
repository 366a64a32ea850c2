// Keys follow llama.cpp's converter. What GGUF cannot express exactly is kept under keys that start
// with "tinyllama.", which other programs ignore: the rope_scaling dictionary, merges, prefix
// handling.
#include "formats/gguf_model.h"

#include <fmt/format.h>

#include <array>
#include <cstring>

#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/hf_config.h"
#include "formats/hf_tokenizer.h"
#include "formats/tensor_stream.h"
#include "formats/vocab_check.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

using Kind = RopeScaling::Kind;

struct NamePair {
  std::string_view hf, gguf;
};
constexpr std::array<NamePair, 3> kTopNames = {{{"model.embed_tokens.weight", "token_embd.weight"},
                                                {"model.norm.weight", "output_norm.weight"},
                                                {"lm_head.weight", "output.weight"}}};
constexpr std::array<NamePair, 9> kLayerNames = {{{"input_layernorm", "attn_norm"},
                                                  {"self_attn.q_proj", "attn_q"},
                                                  {"self_attn.k_proj", "attn_k"},
                                                  {"self_attn.v_proj", "attn_v"},
                                                  {"self_attn.o_proj", "attn_output"},
                                                  {"post_attention_layernorm", "ffn_norm"},
                                                  {"mlp.gate_proj", "ffn_gate"},
                                                  {"mlp.up_proj", "ffn_up"},
                                                  {"mlp.down_proj", "ffn_down"}}};
constexpr std::string_view kHfLayers = "model.layers.", kGgufLayers = "blk.";
constexpr const char* kRopeFreqs = "rope_freqs.weight";
constexpr const char* kOwnScaling = "tinyllama.rope_scaling";
constexpr const char* kOwnPrefix = "tinyllama.prefix_after_special";

// Translates a name one way or the other; a name without a translation stays as it is.
std::string translate(std::string_view name, std::string_view NamePair::*from,
                      std::string_view NamePair::*to, std::string_view from_layers,
                      std::string_view to_layers) {
  for (const NamePair& pair : kTopNames) {
    if (name == pair.*from) return std::string(pair.*to);
  }
  if (!name.starts_with(from_layers)) return std::string(name);
  const std::string_view rest = name.substr(from_layers.size());
  const size_t dot = rest.find('.');
  if (dot == std::string_view::npos) return std::string(name);
  std::string_view inner = rest.substr(dot + 1), kind = ".weight";
  if (inner.ends_with(".bias")) kind = ".bias";
  if (!inner.ends_with(kind)) return std::string(name);
  inner.remove_suffix(kind.size());
  for (const NamePair& pair : kLayerNames) {
    if (inner == pair.*from) {
      return fmt::format("{}{}.{}{}", to_layers, rest.substr(0, dot), pair.*to, kind);
    }
  }
  return std::string(name);
}

std::string hf_name(std::string_view name) {
  return translate(name, &NamePair::gguf, &NamePair::hf, kGgufLayers, kHfLayers);
}

int64_t need(const Gguf& file, std::string_view key) {
  const auto value = file.integer(key);
  if (!value) fail(fmt::format("[load] {}: {} is missing", file.where, key));
  return *value;
}

RopeScaling read_scaling(const Gguf& file, const Config& config) {
  if (const auto own = file.text(kOwnScaling)) return parse_rope_scaling(*own, file.where);
  RopeScaling scaling;
  const int64_t original = file.integer("llama.rope.scaling.original_context_length").value_or(0);
  const auto freqs = file.tensors.find(kRopeFreqs);
  if (freqs != file.tensors.end() && freqs->second.dtype == DType::f32) {
    const auto data = freqs->second.data;
    std::vector<float> factors(data.size() / sizeof(float));
    std::memcpy(factors.data(), data.data(), factors.size() * sizeof(float));
    return solve_llama3(factors, config, original, file.where);
  }
  std::string type = file.text("llama.rope.scaling.type").value_or("none");
  double factor = file.number("llama.rope.scaling.factor").value_or(0);
  if (const auto old = file.number("llama.rope.scale_linear"); old && factor == 0) {
    factor = *old;
    type = "linear";
  }
  if (type == "none" || factor == 0 || (type == "linear" && factor == 1)) return scaling;
  if (type != "linear" && type != "yarn")
    fail(fmt::format(
        "[load] {}: llama.rope.scaling.type \"{}\" is not supported: want linear or yarn",
        file.where, type));
  scaling.kind = type == "linear" ? Kind::linear : Kind::yarn;
  scaling.factor = factor;
  scaling.original_context = original;
  return scaling;
}

void refuse_others(const Gguf& file) {
  const std::string architecture = file.text("general.architecture").value_or("");
  if (architecture != "llama")
    fail(
        fmt::format("[load] {}: want general.architecture \"llama\", got \"{}\": only Llama models "
                    "are supported",
                    file.where, architecture.substr(0, 32)));
  if (file.integer("llama.expert_count").value_or(0) != 0)
    fail(fmt::format("[load] {}: mixtures of experts are not supported", file.where));
}

Config read_config(const Gguf& file) {
  refuse_others(file);
  Config config;
  config.hidden = need(file, "llama.embedding_length");
  config.intermediate = need(file, "llama.feed_forward_length");
  config.n_layers = need(file, "llama.block_count");
  config.n_heads = need(file, "llama.attention.head_count");
  config.n_kv_heads = file.integer("llama.attention.head_count_kv").value_or(config.n_heads);
  config.context = need(file, "llama.context_length");
  config.norm_eps = file.number("llama.attention.layer_norm_rms_epsilon").value_or(1e-5);
  config.rope_theta = file.number("llama.rope.freq_base").value_or(10000);
  if (const auto head_dim = file.integer("llama.attention.key_length")) {
    config.head_dim = *head_dim;
  } else if (config.n_heads > 0 && config.hidden % config.n_heads == 0) {
    config.head_dim = config.hidden / config.n_heads;
  } else {
    fail(fmt::format("[load] {}: width {} does not divide into {} heads", file.where, config.hidden,
                     config.n_heads));
  }
  for (const char* key : {"llama.rope.dimension_count", "llama.attention.value_length"}) {
    if (const auto value = file.integer(key); value && *value != config.head_dim)
      fail(fmt::format("[load] {}: want {} = {} (the head's width), got {}", file.where, key,
                       config.head_dim, *value));
  }
  const auto embedding = file.tensors.find("token_embd.weight");
  if (embedding == file.tensors.end() || embedding->second.dims.size() != 2)
    fail(fmt::format("[load] {}: no model in it: token_embd.weight is missing or not a matrix",
                     file.where));
  config.vocab_size = embedding->second.dims[1];
  config.tied_embeddings = !file.tensors.contains("output.weight");
  validate(config, file.where);  // before anything is computed from it
  config.rope_scaling = read_scaling(file, config);
  validate(config, file.where);
  return config;
}

void add_tensor(const Gguf& file, const GgufTensor& from, Checkpoint& into) {
  const std::string name = hf_name(from.name);
  if (!from.dtype) {
    fail(fmt::format(
        "[load] {}: {} is {}: want F32, F16, BF16, Q4_0, Q8_0, Q4_K or Q6_K; use another "
        "file of the model or quantize the original here",
        file.where, from.name, from.type_name()));
  }
  if (from.dims.size() > 2) return;  // none of ours; check_checkpoint() would miss it by name
  NamedTensor tensor;
  tensor.name = name;
  const int64_t rows = from.dims.size() == 2 ? from.dims[1] : 1;
  tensor.view = TensorView(from.data.data(), *from.dtype, rows, from.dims[0]);
  if (name.ends_with("self_attn.q_proj.weight") || name.ends_with("self_attn.k_proj.weight"))
    tensor.interleaved_dim = into.config.head_dim;
  tensor.file = file.where.substr(file.where.find_last_of('/') + 1);
  if (!into.tensors.emplace(name, tensor).second)
    fail(fmt::format("[load] {}: two tensors are called {}", file.where, name));
}

GenerationDefaults read_sampling(const Gguf& file) {
  GenerationDefaults defaults;
  const auto bounded = [&](const char* key, double low, double high) {
    const auto value = file.number(key);
    if (value && !(*value >= low && *value <= high))
      fail(fmt::format("[load] {}: {} must be in [{}, {}], got {}", file.where, key, low, high,
                       *value));
    return value;
  };
  defaults.temperature = bounded("general.sampling.temp", 0, 1e6);
  defaults.top_p = bounded("general.sampling.top_p", 0, 1);
  defaults.repetition_penalty = bounded("general.sampling.penalty_repeat", 1e-6, 1e6);
  if (const auto top_k = file.integer("general.sampling.top_k");
      top_k && *top_k >= 0 && *top_k <= INT32_MAX)
    defaults.top_k = static_cast<int>(*top_k);
  return defaults;
}

// A head that equals the embeddings bit for bit is the same tensor written twice.
void tie_equal_head(Checkpoint& checkpoint) {
  const NamedTensor* head = checkpoint.find("lm_head.weight");
  const NamedTensor* embed = checkpoint.find("model.embed_tokens.weight");
  if (head == nullptr || embed == nullptr || head->view.dtype != embed->view.dtype ||
      head->view.rows != embed->view.rows || head->view.cols != embed->view.cols ||
      std::memcmp(head->view.data, embed->view.data, head->view.bytes()) != 0)
    return;
  checkpoint.tensors.erase("lm_head.weight");
  checkpoint.config.tied_embeddings = true;
  checkpoint.notes.emplace_back("output.weight equals token_embd.weight: taken as tied embeddings");
}

TokenId token(const Gguf& file, std::string_view key, TokenId otherwise) {
  const auto id = file.integer(key);
  if (!id) return otherwise;
  if (*id < -1 || *id > INT32_MAX)
    fail(fmt::format("[load] {}: {} is out of range: {}", file.where, key, *id));
  return static_cast<TokenId>(*id);
}

void read_flags(const Gguf& file, Vocab& vocab) {
  const auto flag = [&](const char* key, bool otherwise) {
    return file.boolean(key).value_or(otherwise);
  };
  vocab.bos = token(file, "tokenizer.ggml.bos_token_id", 1);
  vocab.eos = token(file, "tokenizer.ggml.eos_token_id", 2);
  vocab.unk = token(file, "tokenizer.ggml.unknown_token_id", 0);
  vocab.pad = token(file, "tokenizer.ggml.padding_token_id", kNoToken);
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const TokenId id = token(file, key, kNoToken);
    if (id != kNoToken && id != vocab.eos) vocab.extra_eos.push_back(id);
  }
  vocab.add_bos = flag("tokenizer.ggml.add_bos_token", true);
  vocab.add_eos = flag("tokenizer.ggml.add_eos_token", false);
  vocab.add_dummy_prefix = flag("tokenizer.ggml.add_space_prefix", true);
  vocab.remove_extra_whitespaces = flag("tokenizer.ggml.remove_extra_whitespaces", false);
  vocab.prefix_after_special = flag(kOwnPrefix, true);
  vocab.chat_template = file.text("tokenizer.chat_template").value_or("");
  if (!is_utf8(vocab.chat_template))
    fail(fmt::format("[load] {}: the chat template is not valid UTF-8", file.where));
}

void read_merges(const Gguf& file, Vocab& vocab) {
  const auto lines = file.texts("tinyllama.merges");
  if (!lines) return;
  const auto index = piece_index(vocab);
  for (const std::string_view line : *lines) {
    const size_t space = line.find(' ');
    const auto left = index.find(line.substr(0, space));
    const auto right =
        space == std::string_view::npos ? index.end() : index.find(line.substr(space + 1));
    if (left == index.end() || right == index.end() ||
        !index.contains(std::string(left->first) + std::string(right->first)))
      fail(fmt::format("[load] {}: merge \"{}\" does not join two pieces to a third", file.where,
                       line.substr(0, 32)));
    vocab.merges.emplace_back(left->second, right->second);
  }
}

}  // namespace

std::string gguf_name(std::string_view name) {
  return translate(name, &NamePair::hf, &NamePair::gguf, kHfLayers, kGgufLayers);
}

Vocab vocab_of_gguf(const Gguf& file) {
  const std::string model = file.text("tokenizer.ggml.model").value_or("");
  if (model != "llama")
    fail(fmt::format("[load] {}: want tokenizer.ggml.model \"llama\" (SentencePiece), got \"{}\"",
                     file.where, model.substr(0, 32)));
  const auto tokens = file.texts("tokenizer.ggml.tokens");
  const auto scores = file.floats("tokenizer.ggml.scores");
  const auto types = file.integers("tokenizer.ggml.token_type");
  if (!tokens || !scores) fail(fmt::format("[load] {}: tokens or scores are missing", file.where));
  if (scores->size() != tokens->size() || (types && types->size() != tokens->size()))
    fail(fmt::format("[load] {}: {} tokens, but {} scores and {} types", file.where, tokens->size(),
                     scores->size(), types ? types->size() : 0));
  Vocab vocab;
  vocab.pieces.reserve(tokens->size());
  for (size_t i = 0; i < tokens->size(); i++) {
    const int64_t type = types ? (*types)[i] : 1;
    if (type < 0 || type > 6)
      fail(fmt::format("[load] {}: token types must be 0 to 6, got {}", file.where, type));
    vocab.pieces.push_back({std::string((*tokens)[i]), (*scores)[i],
                            type == 0 ? PieceType::normal : static_cast<PieceType>(type)});
  }
  read_flags(file, vocab);
  read_merges(file, vocab);
  finish_vocab(vocab, file.where);
  return vocab;
}

Checkpoint checkpoint_of_gguf(const Gguf& file) {
  Checkpoint result;
  result.path = file.where;
  result.format = fmt::format("GGUF v{}", file.version);
  result.name = file.text("general.name").value_or("");
  if (!is_utf8(result.name)) result.name.clear();
  result.config = read_config(file);
  result.generation = read_sampling(file);
  for (const auto& [name, tensor] : file.tensors) {
    if (name != kRopeFreqs) add_tensor(file, tensor, result);
  }
  tie_equal_head(result);
  if (file.find("tokenizer.ggml.tokens") != nullptr) {
    if (file.text("tokenizer.ggml.model").value_or("") == "llama") {
      result.vocab = vocab_of_gguf(file);
    } else {
      result.notes.emplace_back("the tokenizer in the file is not SentencePiece's and is left out");
    }
  }
  check_checkpoint(result);
  return result;
}

}  // namespace tinyllama
