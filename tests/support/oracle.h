// Reading ../shared/oracle: its files, and the model whose weights are a formula.
#pragma once

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/rng.h"
#include "formats/hf_config.h"
#include "formats/safetensors.h"
#include "support/assets.h"
#include "support/tiny_model.h"

namespace tinyllama::testing {

using nlohmann::json;

inline json read_json(const std::string& path) {
  return json::parse(read_text_file(asset(path)));
}

inline std::vector<int32_t> ids(const SafetensorsEntry& entry) {
  const std::vector<int64_t> wide = entry.to_i64();
  return {wide.begin(), wide.end()};
}

inline std::vector<double> doubles(const SafetensorsEntry& entry) {
  if (entry.dtype != "F64") {
    const std::vector<float> values = entry.to_f32();
    return {values.begin(), values.end()};
  }
  std::vector<double> values(entry.data.size() / sizeof(double));
  std::memcpy(values.data(), entry.data.data(), entry.data.size());
  return values;
}

// ---- micro

inline uint64_t hash_bits(std::string_view name, uint64_t seed, uint64_t i) {
  return splitmix64(splitmix64(fnv1a64(name) ^ seed) + i);
}

inline const reference::Model& micro() {
  static const reference::Model model = [] {
    Config config =
        parse_hf_config(read_text_file(asset("oracle/micro/config.json")), "micro").config;
    reference::Model m{config, {}};
    for (const TensorSpec& spec : tensor_specs(config)) {
      const bool is_embedding = spec.name == "model.embed_tokens.weight";
      std::vector<float>& w = m.tensors[spec.name];
      w.resize(static_cast<size_t>(spec.rows * spec.cols));
      for (size_t i = 0; i < w.size(); i++) {
        const auto b = static_cast<int>(hash_bits(spec.name, 42, i) >> 56);
        const double value = spec.is_norm ? 1 + ((b >> 2) - 32) / 128.0
                                          : std::ldexp(2 * b - 255, is_embedding ? -8 : -11);
        w[i] = static_cast<float>(value);
      }
    }
    return m;
  }();
  return model;
}

}  // namespace tinyllama::testing
