// The frequency formulas, one function per scaling variant, all in double precision. Pair i of a
// head turns by position * base^(-2i / head_dim) before scaling.
#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tinyllama {
namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;

// base^(-2i / head_dim) for every pair i.
std::vector<double> plain_frequencies(double base, int64_t head_dim) {
  std::vector<double> inv_freq(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < inv_freq.size(); i++) {
    const double exponent = static_cast<double>(2 * i) / static_cast<double>(head_dim);
    inv_freq[i] = 1 / std::pow(base, exponent);
  }
  return inv_freq;
}

// The base grows with the length, so that the slowest pair is stretched by just what is needed and
// the fastest not at all.
double dynamic_base(const Config& config, int64_t length) {
  const auto d = static_cast<double>(config.head_dim);
  const auto context = static_cast<double>(config.context);
  const double factor = config.rope_scaling.factor;
  const double stretch = factor * std::max(static_cast<double>(length), context) / context;
  return config.rope_theta * std::pow(stretch - (factor - 1), d / (d - 2));
}

// YaRN's temperature: 0.1 m ln(s) + 1.
double yarn_magnitude(double factor, double m) {
  return factor <= 1 ? 1 : 0.1 * m * std::log(factor) + 1;
}

double yarn_attention_factor(const RopeScaling& scaling) {
  if (scaling.attention_factor != 0) return scaling.attention_factor;
  if (scaling.mscale != 0 && scaling.mscale_all_dim != 0) {
    return yarn_magnitude(scaling.factor, scaling.mscale) /
           yarn_magnitude(scaling.factor, scaling.mscale_all_dim);
  }
  return yarn_magnitude(scaling.factor, 1);
}

// Pairs that turn more than beta_fast times in the original context keep their frequency, those
// that turn less than beta_slow times are interpolated, a ramp joins the two.
void scale_yarn(const Config& config, std::vector<double>& inv_freq) {
  const RopeScaling& s = config.rope_scaling;
  const auto d = static_cast<double>(config.head_dim);
  const auto original =
      static_cast<double>(s.original_context != 0 ? s.original_context : config.context);
  // The (fractional) pair that turns `turns` times in the original context.
  const auto pair_of = [&](double turns) {
    return d * std::log(original / (turns * kTwoPi)) / (2 * std::log(config.rope_theta));
  };
  double low = pair_of(s.beta_fast), high = pair_of(s.beta_slow);
  if (s.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, d - 1);
  if (low == high) high += 0.001;  // Hugging Face's guard against dividing by zero
  for (size_t i = 0; i < inv_freq.size(); i++) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inv_freq[i] = inv_freq[i] / s.factor * ramp + inv_freq[i] * (1 - ramp);
  }
}

// Like YaRN's, with the ramp linear in the number of turns and no attention factor.
void scale_llama3(const RopeScaling& s, std::vector<double>& inv_freq) {
  const auto original = static_cast<double>(s.original_context);
  for (double& f : inv_freq) {
    const double turns = original * f / kTwoPi;
    if (turns < s.low_freq_factor) {
      f /= s.factor;
    } else if (turns <= s.high_freq_factor) {
      const double smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      f = (1 - smooth) * f / s.factor + smooth * f;
    }
  }
}

}  // namespace

RopeFrequencies rope_frequencies(const Config& config, int64_t length) {
  const RopeScaling& scaling = config.rope_scaling;
  const bool dynamic = scaling.kind == RopeScaling::Kind::dynamic;
  RopeFrequencies result;
  result.inv_freq = plain_frequencies(dynamic ? dynamic_base(config, length) : config.rope_theta,
                                      config.head_dim);
  switch (scaling.kind) {
    case RopeScaling::Kind::none:
    case RopeScaling::Kind::dynamic:
      break;
    case RopeScaling::Kind::linear:
      for (double& f : result.inv_freq) f /= scaling.factor;
      break;
    case RopeScaling::Kind::yarn:
      scale_yarn(config, result.inv_freq);
      result.scale = yarn_attention_factor(scaling);
      break;
    case RopeScaling::Kind::llama3:
      scale_llama3(scaling, result.inv_freq);
      break;
  }
  return result;
}

void rope_row(std::span<const double> inv_freq, double scale, int64_t position, float* to) {
  const size_t half = inv_freq.size();
  for (size_t i = 0; i < half; i++) {
    const double angle = static_cast<double>(position) * inv_freq[i];
    to[i] = static_cast<float>(scale * std::cos(angle));
    to[half + i] = static_cast<float>(scale * std::sin(angle));
  }
}

}  // namespace tinyllama
