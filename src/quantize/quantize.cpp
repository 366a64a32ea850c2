// The policy is a table; its one rule that is not a table is which layers get more bits.
#include "quantize/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"

namespace tinyllama {
namespace {

struct Policy {
  std::string_view name;
  DType matrix, head, sensitive;
};
constexpr std::array<Policy, 6> kPolicies = {{
    {"f32", DType::f32, DType::f32, DType::f32},
    {"f16", DType::f16, DType::f16, DType::f16},
    {"bf16", DType::bf16, DType::bf16, DType::bf16},
    {"q8_0", DType::q8_0, DType::q8_0, DType::q8_0},
    {"q4_0", DType::q4_0, DType::q6_k, DType::q4_0},
    {"q4_k_m", DType::q4_k, DType::q6_k, DType::q6_k},
}};

const Policy& policy_named(std::string_view type) {
  std::string known;
  for (const Policy& policy : kPolicies) {
    if (policy.name == type) return policy;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", policy.name);
  }
  fail(fmt::format("[quantize] unknown type '{}': want one of {}", type, known));
}

// The layer number in "model.layers.12.…", or -1.
int64_t layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  int64_t layer = -1;
  if (name.starts_with(kPrefix))
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  return layer;
}

// The first and last eighth of the layers, and every third between (llama.cpp's use_more_bits).
bool is_sensitive(std::string_view name, int64_t n_layers) {
  if (!name.ends_with(".v_proj.weight") && !name.ends_with(".down_proj.weight")) return false;
  const int64_t layer = layer_of(name), eighth = n_layers / 8;
  return layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2;
}

DType wanted(const Policy& policy, const Config& config, const TensorSpec& spec) {
  if (spec.is_norm) return DType::f32;
  const std::string_view head =
      config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  if (spec.name == head) return policy.head;
  return is_sensitive(spec.name, config.n_layers) ? policy.sensitive : policy.matrix;
}

DType fitting(DType dtype, int64_t cols) {
  if (cols % traits(dtype).block_size == 0) return dtype;
  return cols % traits(DType::q8_0).block_size == 0 ? DType::q8_0 : DType::f16;
}

}  // namespace

std::vector<std::string> quantize_types() {
  std::vector<std::string> names;
  names.reserve(kPolicies.size());
  for (const Policy& policy : kPolicies) names.emplace_back(policy.name);
  return names;
}

DTypeChoice quantize_policy(std::string_view type, const Config& config) {
  return [&policy = policy_named(type), config](const TensorSpec& spec) {
    return fitting(wanted(policy, config, spec), spec.cols);
  };
}

std::vector<std::string> quantize_notes(std::string_view type, const Config& config) {
  const Policy& policy = policy_named(type);
  std::vector<std::string> notes;
  for (const TensorSpec& spec : tensor_specs(config)) {
    const DType want = wanted(policy, config, spec), got = fitting(want, spec.cols);
    if (want == got) continue;
    const std::string note =
        fmt::format("rows of {} elements are no multiple of {}: stored as {} instead of {}",
                    spec.cols, traits(want).block_size, traits(got).name, traits(want).name);
    if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(note);
  }
  return notes;
}

QuantizeResult quantize_model(const std::string& in, const std::string& out, std::string_view type,
                              ThreadPool& pool, const Progress& progress) {
  policy_named(type);  // before a large file is opened
  const Checkpoint from = open_checkpoint(in);
  const DTypeChoice dtype_of = quantize_policy(type, from.config);
  QuantizeResult result;
  result.notes = from.notes;
  for (std::string& note : quantize_notes(type, from.config))
    result.notes.push_back(std::move(note));
  result.bytes_before = from.tensor_bytes();
  bool again = false;
  for (const TensorSpec& spec : tensor_specs(from.config)) {
    const DType before = from.find(spec.name)->view.dtype, after = dtype_of(spec);
    result.bytes_after += static_cast<uint64_t>(spec.rows) * row_bytes(after, spec.cols);
    again |= traits(before).quantized && before != after;
  }
  if (again)
    result.notes.emplace_back(
        "the model was quantized before: start from the original for better quality");
  write_gguf(from, out, dtype_of, pool, progress);
  return result;
}

}  // namespace tinyllama
