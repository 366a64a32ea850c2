// Llama 3's RoPE scaling as a table of factors, and back. Formula: transformers,
// modeling_rope_utils._compute_llama3_parameters.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "formats/gguf_model.h"

namespace tinyllama {
namespace {

// Turns per position of pair `i`.
double frequency(const Config& config, size_t i) {
  const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
  return std::pow(config.rope_theta, -exponent) / (2 * std::numbers::pi);
}

bool gives(const RopeScaling& scaling, const std::vector<float>& factors, Config config) {
  config.rope_scaling = scaling;
  const std::vector<float> got = llama3_factors(config);
  for (size_t i = 0; i < factors.size(); i++) {
    if (!(std::fabs(got[i] - factors[i]) <= 1e-5f * std::fabs(factors[i]))) return false;
  }
  return true;
}

RopeScaling llama3(double factor, double low, double high, int64_t original) {
  RopeScaling scaling;
  scaling.kind = RopeScaling::Kind::llama3;
  scaling.factor = factor;
  scaling.low_freq_factor = low, scaling.high_freq_factor = high;
  scaling.original_context = original;
  return scaling;
}

// Inside the ramp, smooth = slope * frequency - offset, with slope = original / (high - low) and
// offset = low / (high - low): two pairs in the ramp give both, and `original` or low = 1 the rest.
std::vector<RopeScaling> candidates(const std::vector<float>& factors, const Config& config,
                                    int64_t original_context, double factor) {
  std::vector<RopeScaling> result = {
      llama3(factor, 1, 4, original_context > 0 ? original_context : 8192)};
  std::vector<std::pair<double, double>> ramp;  // frequency, smooth
  for (size_t i = 0; i < factors.size(); i++) {
    const double f = static_cast<double>(factors[i]);
    if (f > 1 && f < factor)
      ramp.emplace_back(frequency(config, i), (1 / f - 1 / factor) / (1 - 1 / factor));
  }
  if (ramp.size() < 2) return result;
  const auto [x0, y0] = ramp.front();
  const auto [x1, y1] = ramp.back();
  const double slope = (y1 - y0) / (x1 - x0), offset = slope * x0 - y0;
  const double width =
      original_context > 0 ? static_cast<double>(original_context) / slope : 1 / offset;
  if (!std::isfinite(width) || width <= 0 || width > 1e6) return result;
  const double low = offset * width, original = slope * width;
  if (!(low > 0) || !(original >= 1) || original > 1e7) return result;
  const auto neat = [](double x) { return std::round(x * 1000) / 1000; };
  result.push_back(llama3(factor, neat(low), neat(low + width), std::llround(original)));
  result.push_back(llama3(factor, low, low + width, std::llround(original)));
  return result;
}

}  // namespace

std::vector<float> llama3_factors(const Config& config) {
  const RopeScaling& s = config.rope_scaling;
  const auto original = static_cast<double>(s.original_context);
  std::vector<float> factors(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < factors.size(); i++) {
    const double turns = original * frequency(config, i);  // within the original context
    const double smooth = std::clamp(
        (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0);
    factors[i] = static_cast<float>(1 / ((1 - smooth) / s.factor + smooth));
  }
  return factors;
}

RopeScaling solve_llama3(const std::vector<float>& factors, const Config& config,
                         int64_t original_context, std::string_view where) {
  if (factors.size() != static_cast<size_t>(config.head_dim / 2))
    fail(fmt::format("[load] {}: want {} factors in rope_freqs.weight, got {}", where,
                     config.head_dim / 2, factors.size()));
  const float largest = *std::max_element(factors.begin(), factors.end());
  if (std::all_of(factors.begin(), factors.end(), [](float f) { return f == 1.0f; })) return {};
  if (largest > 1 && largest < 1e6f) {
    for (const RopeScaling& scaling :
         candidates(factors, config, original_context, static_cast<double>(largest))) {
      if (gives(scaling, factors, config)) return scaling;
    }
  }
  fail(fmt::format("[load] {}: the factors in rope_freqs.weight are not those of a Llama 3 scaling",
                   where));
}

}  // namespace tinyllama
