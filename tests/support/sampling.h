// What tests of sampling share: logits, chains that reach every path, and small helpers.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "infer/sampler.h"

namespace tinyllama::testing {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Roughly normal logits, some of them equal, with a few that stand out.
inline std::vector<float> random_logits(size_t n, uint64_t seed, double deviation = 2) {
  std::vector<float> logits(n);
  for (size_t i = 0; i < n; i++) {
    double sum = -6;
    for (uint64_t k = 0; k < 12; k++) sum += uniform_open(hash_key(seed, i, k));
    logits[i] = static_cast<float>(std::round(sum * deviation * 64) / 64);
    if (hash_key(seed, i, 99) % 200 == 0) logits[i] += static_cast<float>(3 * deviation);
  }
  return logits;
}

// Chains that reach every path of the sampler.
inline std::vector<SamplerParams> chains() {
  std::vector<SamplerParams> list(18);
  list[0].temperature = 0;
  list[1].temperature = 0.3;
  list[2].temperature = 2.5;
  list[3].top_k = 1;
  list[4].top_k = 40;
  list[5].top_k = 700;
  list[6].top_p = 0;
  list[7].top_p = 0.6;
  list[8].top_p = 0.95, list[8].temperature = 3;
  list[9].top_p = 0.9999999;
  list[10].min_p = 0.05;
  list[11].min_p = 1;
  list[12].typical_p = 0.5;
  list[13].typical_p = 0.95, list[13].top_k = 100;
  list[14] = {
      .temperature = 0.8, .top_k = 40, .top_p = 0.95, .min_p = 0.05, .repetition_penalty = 1.1};
  list[15].frequency_penalty = 0.4, list[15].presence_penalty = -0.3, list[15].penalty_window = 16;
  list[16].repetition_penalty = 1.3, list[16].temperature = 0, list[16].penalty_window = 0;
  list[17].logit_bias = {{3, -kInfinity}, {5, 4.5f}, {5, 1.0f}};
  list[17].temperature = 1.3;
  return list;
}

// What the Error said.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

// The text before the stop that is complete first, in all of it at once.
inline std::pair<std::string, bool> cut_at_stop(const std::string& text,
                                                const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); end++) {
    size_t longest = 0;
    for (const std::string& stop : stops)
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

}  // namespace tinyllama::testing
