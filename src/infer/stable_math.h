// exp and log whose bits depend on their argument alone: plain multiplications and additions in one
// order, no libm that picks another variant on another machine. With them, the passes over a whole
// row of logits that sampling and perplexity need, each reduced in one order on every machine.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace tinyllama {

// ln 2 in two parts; the high one has 20 trailing zero bits, so that its product with an exponent
// is exact.
inline constexpr double kLn2High = 0x1.62e42fefp-1;
inline constexpr double kLn2Low = 0x1.473de6af278edp-34;
inline constexpr double kLog2E = 0x1.71547652b82fep+0;

// e^x for x <= 0, to within 2 units in the last place; arguments below -700 count as -700 (1e-304),
// -infinity included.
double stable_exp(double x);

// ln x for a positive normal x, to within 3 units in the last place, near 1 too.
inline double stable_log(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  // The exponent that brings the mantissa into [sqrt(1/2), sqrt(2)).
  const uint64_t above = bits - std::bit_cast<uint64_t>(0x1.6a09e667f3bcdp-1);
  const int64_t exponent = static_cast<int64_t>(above) >> 52;
  const double m = std::bit_cast<double>(bits - (static_cast<uint64_t>(exponent) << 52));
  const double f = m - 1.0, s = f / (2.0 + f), z = s * s;
  double p = 1.0 / 21.0;  // ln(1 + f) = 2 atanh(s) = 2 (s + s^3 / 3 + s^5 / 5 + ...), |s| < 0.172
  for (int odd = 19; odd >= 3; odd -= 2) p = p * z + 1.0 / odd;
  const double k = static_cast<double>(exponent);
  return k * kLn2High + (2.0 * s * (z * p) + k * kLn2Low + 2.0 * s);
}

// sum_i e^((x_i - max) * inverse_temperature), where `max` is the largest x: eight interleaved
// partial sums.
double sum_exp(std::span<const float> x, float max, double inverse_temperature);

// y_i = e^((x_i - max) * inverse_temperature).
void exp_each(std::span<const float> x, float max, double inverse_temperature, std::span<double> y);

// ln sum_i e^x_i; -infinity entries count as nothing. x has at least one finite entry and no NaN.
double log_sum_exp(std::span<const float> x);

inline constexpr size_t kScanBlock = 32;

// maxima[b] = the largest of x[b * kScanBlock ...] (the last block may be short). Returns false
// when some x is NaN or +infinity; the maxima then mean nothing.
bool block_maxima(std::span<const float> x, std::span<float> maxima);

// bits[i] = splitmix64(key ^ (first + i)), kScanBlock of them.
void hash_block(uint64_t key, uint64_t first, uint64_t* bits);

}  // namespace tinyllama
