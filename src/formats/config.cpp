// Bounds, presets and the parameter count of a Config. The bounds are wide (far beyond a 13B model)
// but keep every product of two sizes within 63 bits and every list that is built from a file
// short.
#include "formats/config.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "base/error.h"

namespace tinyllama {
namespace {

struct Preset {
  std::string_view name;
  Config config;
};

Config shape(int64_t vocab, int64_t hidden, int64_t intermediate, int64_t n_layers, int64_t n_heads,
             int64_t n_kv_heads, int64_t context, bool tied = false) {
  Config config;
  config.vocab_size = vocab;
  config.hidden = hidden;
  config.intermediate = intermediate;
  config.n_layers = n_layers;
  config.n_heads = n_heads;
  config.n_kv_heads = n_kv_heads;
  config.head_dim = hidden / n_heads;
  config.context = context;
  config.tied_embeddings = tied;
  return config;
}

std::vector<Preset> presets() {
  return {
      {"tinyllama-1.1b", shape(32000, 2048, 5632, 22, 32, 4, 2048)},
      {"tinyllama-120m", shape(32000, 768, 2048, 12, 12, 1, 2048)},
      {"stories-260k", shape(512, 64, 172, 5, 8, 4, 512, true)},
      {"stories-15m", shape(32000, 288, 768, 6, 6, 6, 256, true)},
      {"stories-42m", shape(32000, 512, 1376, 8, 8, 8, 1024, true)},
      {"stories-110m", shape(32000, 768, 2048, 12, 12, 12, 1024, true)},
      {"llama-2-7b", shape(32000, 4096, 11008, 32, 32, 32, 4096)},
      {"llama-2-13b", shape(32000, 5120, 13824, 40, 40, 40, 4096)},
  };
}

void want_range(std::string_view where, std::string_view field, int64_t value, int64_t low,
                int64_t high) {
  if (value < low || value > high)
    fail(
        fmt::format("[config] {}: {} must be in [{}, {}], got {}", where, field, low, high, value));
}

void want_real(std::string_view where, std::string_view field, double value, double low,
               double high) {
  if (!(value >= low && value <= high))  // also catches NaN
    fail(
        fmt::format("[config] {}: {} must be in [{}, {}], got {}", where, field, low, high, value));
}

void validate_scaling(const RopeScaling& scaling, std::string_view where) {
  using Kind = RopeScaling::Kind;
  if (scaling.kind == Kind::none) return;
  want_real(where, "rope_scaling.factor", scaling.factor, 1e-3, 1e6);
  want_range(where, "rope_scaling.original_max_position_embeddings", scaling.original_context, 0,
             int64_t{1} << 24);
  if (scaling.kind == Kind::yarn) {
    want_real(where, "rope_scaling.attention_factor", scaling.attention_factor, 0, 1e6);
    want_real(where, "rope_scaling.mscale", scaling.mscale, 0, 1e6);
    want_real(where, "rope_scaling.mscale_all_dim", scaling.mscale_all_dim, 0, 1e6);
    want_real(where, "rope_scaling.beta_fast", scaling.beta_fast, 1e-6, 1e6);
    want_real(where, "rope_scaling.beta_slow", scaling.beta_slow, 1e-6, scaling.beta_fast);
  }
  if (scaling.kind == Kind::llama3) {
    want_range(where, "rope_scaling.original_max_position_embeddings", scaling.original_context, 1,
               int64_t{1} << 24);
    want_real(where, "rope_scaling.low_freq_factor", scaling.low_freq_factor, 1e-6, 1e6);
    want_real(where, "rope_scaling.high_freq_factor", scaling.high_freq_factor,
              scaling.low_freq_factor * (1 + 1e-9), 1e6);
  }
}

}  // namespace

int64_t Config::parameters() const {
  const int64_t attention = 2 * hidden * q_dim() + 2 * hidden * kv_dim();
  const int64_t layer = attention + 3 * hidden * intermediate + 2 * hidden;
  return (tied_embeddings ? 1 : 2) * vocab_size * hidden + n_layers * layer + hidden;
}

void validate(const Config& config, std::string_view where) {
  want_range(where, "vocab_size", config.vocab_size, 1, int64_t{1} << 20);
  want_range(where, "hidden_size", config.hidden, 1, int64_t{1} << 16);
  want_range(where, "intermediate_size", config.intermediate, 1, int64_t{1} << 18);
  want_range(where, "num_hidden_layers", config.n_layers, 1, 512);
  want_range(where, "num_attention_heads", config.n_heads, 1, 1024);
  want_range(where, "num_key_value_heads", config.n_kv_heads, 1, config.n_heads);
  want_range(where, "head_dim", config.head_dim, 2, 1024);
  want_range(where, "max_position_embeddings", config.context, 1, int64_t{1} << 24);
  if (config.n_heads % config.n_kv_heads != 0)
    fail(
        fmt::format("[config] {}: num_attention_heads ({}) must be a multiple of "
                    "num_key_value_heads ({})",
                    where, config.n_heads, config.n_kv_heads));
  if (config.head_dim % 2 != 0)
    fail(fmt::format("[config] {}: head_dim must be even, got {}", where, config.head_dim));
  want_real(where, "rms_norm_eps", config.norm_eps, 1e-20, 1);
  want_real(where, "rope_theta", config.rope_theta, 1, 1e15);
  validate_scaling(config.rope_scaling, where);
}

Config preset(std::string_view name) {
  std::string known;
  for (const Preset& candidate : presets()) {
    if (candidate.name == name) return candidate.config;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", candidate.name);
  }
  fail(fmt::format("[config] unknown preset '{}': want one of {}", name, known));
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& candidate : presets()) names.emplace_back(candidate.name);
  return names;
}

}  // namespace tinyllama
