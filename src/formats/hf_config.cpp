// Field names and defaults follow transformers' LlamaConfig and GenerationConfig.
#include "formats/hf_config.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"
#include "formats/json_detail.h"

namespace tinyllama {
namespace {

using json_detail::boolean;
using json_detail::find;
using json_detail::integer;
using json_detail::Json;
using json_detail::need_integer;
using json_detail::number;
using json_detail::OrderedJson;
using Kind = RopeScaling::Kind;

constexpr const char* kTransformersVersion = "4.35.0";
constexpr size_t kMaxEos = 64;

struct KindName {
  Kind kind;
  const char* name;
};
constexpr KindName kKinds[] = {{Kind::linear, "linear"},
                               {Kind::dynamic, "dynamic"},
                               {Kind::yarn, "yarn"},
                               {Kind::llama3, "llama3"}};

TokenId as_token(const Json& value, const char* key, std::string_view where) {
  const int64_t id = json_detail::as_integer(value, key, where);
  if (id < -1 || id > INT32_MAX)
    fail(fmt::format("[load] {}: {} is out of range: {}", where, key, id));
  return static_cast<TokenId>(id);
}

TokenId token(const Json& object, const char* key, std::string_view where) {
  const Json* value = find(object, key);
  if (value != nullptr && value->is_array() && !value->empty()) value = &value->front();
  return value == nullptr || value->is_array() ? kNoToken : as_token(*value, key, where);
}

// eos_token_id: one id or a list.
std::vector<TokenId> eos_tokens(const Json& object, std::string_view where) {
  std::vector<TokenId> ids;
  const Json* value = find(object, "eos_token_id");
  if (value == nullptr) return ids;
  if (!value->is_array()) return {as_token(*value, "eos_token_id", where)};
  if (value->size() > kMaxEos)
    fail(fmt::format("[load] {}: at most {} eos_token_id, got {}", where, kMaxEos, value->size()));
  for (const Json& id : *value) ids.push_back(as_token(id, "eos_token_id", where));
  return ids;
}

RopeScaling read_scaling(const Json& dictionary, std::string_view where) {
  RopeScaling scaling;
  if (dictionary.is_null()) return scaling;
  if (!dictionary.is_object())
    fail(fmt::format("[load] {}: rope_scaling must be an object or null", where));
  auto name = json_detail::text(dictionary, "rope_type", where);
  if (!name) name = json_detail::text(dictionary, "type", where);
  if (!name || *name == "default") return scaling;
  for (const KindName& known : kKinds) {
    if (*name == known.name) scaling.kind = known.kind;
  }
  if (scaling.kind == Kind::none)
    fail(
        fmt::format("[load] {}: rope_scaling type \"{}\" is not supported: want linear, dynamic, "
                    "yarn or llama3",
                    where, *name));
  const auto factor = number(dictionary, "factor", where);
  if (!factor) fail(fmt::format("[load] {}: rope_scaling needs a factor", where));
  const auto real = [&](const char* key, double otherwise) {
    return number(dictionary, key, where).value_or(otherwise);
  };
  scaling.factor = *factor;
  scaling.original_context =
      integer(dictionary, "original_max_position_embeddings", where).value_or(0);
  scaling.attention_factor = real("attention_factor", 0);
  scaling.mscale = real("mscale", 0);
  scaling.mscale_all_dim = real("mscale_all_dim", 0);
  scaling.beta_fast = real("beta_fast", scaling.beta_fast);
  scaling.beta_slow = real("beta_slow", scaling.beta_slow);
  scaling.truncate = boolean(dictionary, "truncate", where).value_or(true);
  scaling.low_freq_factor = real("low_freq_factor", scaling.low_freq_factor);
  scaling.high_freq_factor = real("high_freq_factor", scaling.high_freq_factor);
  return scaling;
}

OrderedJson scaling_json(const RopeScaling& scaling) {
  if (scaling.kind == Kind::none) return nullptr;
  OrderedJson out;
  // Early transformers accept exactly {"type", "factor"}; later ones translate that themselves.
  const bool early = scaling.kind == Kind::linear || scaling.kind == Kind::dynamic;
  for (const KindName& known : kKinds) {
    if (known.kind == scaling.kind) out[early ? "type" : "rope_type"] = known.name;
  }
  out["factor"] = scaling.factor;
  if (scaling.original_context != 0)
    out["original_max_position_embeddings"] = scaling.original_context;
  if (scaling.kind == Kind::yarn) {
    if (scaling.attention_factor != 0) out["attention_factor"] = scaling.attention_factor;
    if (scaling.mscale != 0) out["mscale"] = scaling.mscale;
    if (scaling.mscale_all_dim != 0) out["mscale_all_dim"] = scaling.mscale_all_dim;
    out["beta_fast"] = scaling.beta_fast;
    out["beta_slow"] = scaling.beta_slow;
    if (!scaling.truncate) out["truncate"] = false;
  }
  if (scaling.kind == Kind::llama3) {
    out["low_freq_factor"] = scaling.low_freq_factor;
    out["high_freq_factor"] = scaling.high_freq_factor;
  }
  return out;
}

// Refuses what would silently give a different model.
void refuse_others(const Json& json, std::string_view where) {
  const auto want_text = [&](const char* key, std::string_view want) {
    const auto value = json_detail::text(json, key, where);
    if (value && *value != want)
      fail(fmt::format("[load] {}: want {} \"{}\", got \"{}\": only Llama models are supported",
                       where, key, want, *value));
  };
  want_text("model_type", "llama");
  want_text("hidden_act", "silu");
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (boolean(json, key, where).value_or(false))
      fail(fmt::format("[load] {}: {} must be false: models with biases are not supported", where,
                       key));
  }
  if (number(json, "partial_rotary_factor", where).value_or(1) != 1)
    fail(fmt::format("[load] {}: partial_rotary_factor must be 1", where));
  if (find(json, "quantization_config") != nullptr)
    fail(
        fmt::format("[load] {}: quantized Hugging Face checkpoints are not supported: use the "
                    "original model and quantize it here",
                    where));
}

}  // namespace

HfConfig parse_hf_config(std::string_view text, std::string_view where) {
  const Json json = json_detail::parse_object(text, where);
  refuse_others(json, where);
  HfConfig result;
  Config& config = result.config;
  config.vocab_size = need_integer(json, "vocab_size", where);
  config.hidden = need_integer(json, "hidden_size", where);
  config.intermediate = need_integer(json, "intermediate_size", where);
  config.n_layers = need_integer(json, "num_hidden_layers", where);
  config.n_heads = need_integer(json, "num_attention_heads", where);
  config.n_kv_heads = integer(json, "num_key_value_heads", where).value_or(config.n_heads);
  if (const auto head_dim = integer(json, "head_dim", where)) {
    config.head_dim = *head_dim;
  } else {
    if (config.n_heads < 1 || config.hidden % config.n_heads != 0)
      fail(fmt::format("[load] {}: hidden_size ({}) must be a multiple of num_attention_heads ({})",
                       where, config.hidden, config.n_heads));
    config.head_dim = config.hidden / config.n_heads;
  }
  config.context = integer(json, "max_position_embeddings", where).value_or(2048);
  config.norm_eps = number(json, "rms_norm_eps", where).value_or(1e-6);
  config.rope_theta = number(json, "rope_theta", where).value_or(10000);
  config.tied_embeddings = boolean(json, "tie_word_embeddings", where).value_or(false);
  const Json* scaling = find(json, "rope_scaling");
  if (const Json* parameters = find(json, "rope_parameters")) {  // transformers 5
    config.rope_theta = number(*parameters, "rope_theta", where).value_or(config.rope_theta);
    scaling = parameters;
  }
  if (scaling != nullptr) config.rope_scaling = read_scaling(*scaling, where);
  validate(config, where);
  result.bos = token(json, "bos_token_id", where);
  result.pad = token(json, "pad_token_id", where);
  result.eos = eos_tokens(json, where);
  return result;
}

std::string make_hf_config(const Config& config, const Vocab* vocab, DType dtype) {
  const std::string dtype_name = dtype == DType::f16    ? "float16"
                                 : dtype == DType::bf16 ? "bfloat16"
                                                        : "float32";
  OrderedJson out;
  out["architectures"] = {"LlamaForCausalLM"};
  out["attention_bias"] = false;
  out["attention_dropout"] = 0.0;
  out["bos_token_id"] = vocab != nullptr && vocab->bos >= 0 ? vocab->bos : 1;
  out["eos_token_id"] = vocab != nullptr && vocab->eos >= 0 ? vocab->eos : 2;
  if (vocab != nullptr && vocab->pad >= 0) out["pad_token_id"] = vocab->pad;
  out["head_dim"] = config.head_dim;
  out["hidden_act"] = "silu";
  out["hidden_size"] = config.hidden;
  out["initializer_range"] = 0.02;
  out["intermediate_size"] = config.intermediate;
  out["max_position_embeddings"] = config.context;
  out["mlp_bias"] = false;
  out["model_type"] = "llama";
  out["num_attention_heads"] = config.n_heads;
  out["num_hidden_layers"] = config.n_layers;
  out["num_key_value_heads"] = config.n_kv_heads;
  out["pretraining_tp"] = 1;
  out["rms_norm_eps"] = config.norm_eps;
  out["rope_scaling"] = scaling_json(config.rope_scaling);
  out["rope_theta"] = config.rope_theta;
  out["tie_word_embeddings"] = config.tied_embeddings;
  out["torch_dtype"] = dtype_name;
  out["transformers_version"] = kTransformersVersion;
  out["use_cache"] = true;
  out["vocab_size"] = config.vocab_size;
  return out.dump(2) + "\n";
}

RopeScaling parse_rope_scaling(std::string_view text, std::string_view where) {
  return read_scaling(json_detail::parse(text, where), where);
}

std::string make_rope_scaling(const RopeScaling& scaling) {
  return scaling_json(scaling).dump();
}

GenerationConfig parse_generation_config(std::string_view text, std::string_view where) {
  const Json json = json_detail::parse_object(text, where);
  GenerationConfig result;
  const auto bounded = [&](const char* key, double low, double high) {
    const auto value = number(json, key, where);
    if (value && !(*value >= low && *value <= high))
      fail(fmt::format("[load] {}: {} must be in [{}, {}], got {}", where, key, low, high, *value));
    return value;
  };
  result.defaults.temperature = bounded("temperature", 0, 1e6);
  result.defaults.top_p = bounded("top_p", 0, 1);
  result.defaults.repetition_penalty = bounded("repetition_penalty", 1e-6, 1e6);
  if (const auto top_k = bounded("top_k", 0, INT32_MAX))
    result.defaults.top_k = static_cast<int>(*top_k);
  result.eos = eos_tokens(json, where);
  return result;
}

std::string make_generation_config(const GenerationDefaults& defaults, const Vocab* vocab) {
  OrderedJson out;
  out["_from_model_config"] = true;
  out["bos_token_id"] = vocab != nullptr && vocab->bos >= 0 ? vocab->bos : 1;
  const TokenId eos = vocab != nullptr && vocab->eos >= 0 ? vocab->eos : 2;
  if (vocab != nullptr && !vocab->extra_eos.empty()) {
    std::vector<TokenId> all = {eos};
    all.insert(all.end(), vocab->extra_eos.begin(), vocab->extra_eos.end());
    out["eos_token_id"] = all;
  } else {
    out["eos_token_id"] = eos;
  }
  if (vocab != nullptr && vocab->pad >= 0) out["pad_token_id"] = vocab->pad;
  if (defaults.temperature || defaults.top_p || defaults.top_k) out["do_sample"] = true;
  if (defaults.temperature) out["temperature"] = *defaults.temperature;
  if (defaults.top_k) out["top_k"] = *defaults.top_k;
  if (defaults.top_p) out["top_p"] = *defaults.top_p;
  if (defaults.repetition_penalty) out["repetition_penalty"] = *defaults.repetition_penalty;
  out["transformers_version"] = kTransformersVersion;
  return out.dump(2) + "\n";
}

std::map<std::string, std::string> parse_weight_index(std::string_view text,
                                                      std::string_view where) {
  const Json json = json_detail::parse_object(text, where);
  const Json* map = find(json, "weight_map");
  if (map == nullptr || !map->is_object())
    fail(fmt::format("[load] {}: want an object \"weight_map\"", where));
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    const std::string& name = json_detail::as_string(file, tensor, where);
    if (name.empty() || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos || name == "." || name == "..")
      fail(fmt::format("[load] {}: \"{}\" must be the name of a file in the same folder", where,
                       name));
    files[tensor] = name;
  }
  return files;
}

std::string make_weight_index(const std::map<std::string, std::string>& files,
                              uint64_t total_bytes) {
  OrderedJson out;
  out["metadata"] = {{"total_size", total_bytes}};
  out["weight_map"] = files;
  return out.dump(2) + "\n";
}

}  // namespace tinyllama
