#include "model/random_weights.h"

#include <cmath>
#include <numbers>
#include <span>
#include <vector>

#include "base/rng.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

// Standard deviation of a weight matrix. TinyLlama: sqrt(2 / (5 d)) everywhere, but 1 / (sqrt(d)
// n_layers) for the two projections that write into the residual stream (lit_gpt's `_init_weights`;
// cf. Wang and Komatsuzaki 2021).
double weight_deviation(const TensorSpec& spec, const Config& config) {
  const auto d = static_cast<double>(config.hidden);
  const bool into_residual =
      spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
  return into_residual ? 1 / (std::sqrt(d) * static_cast<double>(config.n_layers))
                       : std::sqrt(2 / (5 * d));
}

// to[i] = N(0, deviation) drawn for element first + i of the stream `key`, in pairs by Box and
// Muller (1958).
void fill_normal(uint64_t key, int64_t first, std::span<float> to, double deviation) {
  const int64_t end = first + std::ssize(to);
  for (int64_t pair = first / 2; 2 * pair < end; pair++) {
    const auto counter = static_cast<uint64_t>(2 * pair);
    const double radius =
        deviation * std::sqrt(-2 * std::log(uniform_open(splitmix64(key + counter))));
    const double angle = 2 * std::numbers::pi * uniform_open(splitmix64(key + counter + 1));
    const int64_t at = 2 * pair - first;
    if (at >= 0) to[static_cast<size_t>(at)] = static_cast<float>(radius * std::cos(angle));
    if (at + 1 < std::ssize(to))
      to[static_cast<size_t>(at + 1)] = static_cast<float>(radius * std::sin(angle));
  }
}

}  // namespace

void fill_random_rows(const TensorSpec& spec, const Config& config, uint64_t seed, ThreadPool& pool,
                      int64_t first, int64_t n, DType dtype, std::byte* to) {
  const uint64_t key = hash_key(seed, fnv1a64(spec.name));
  const double deviation = weight_deviation(spec, config);
  const size_t stride = row_bytes(dtype, spec.cols);
  pool.for_ranges(n, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(spec.cols), 1.0F);  // what a norm starts as
    for (int64_t r = begin; r < end; r++) {
      if (!spec.is_norm) fill_normal(key, (first + r) * spec.cols, row, deviation);
      encode_row(dtype, row.data(), to + static_cast<size_t>(r) * stride, spec.cols);
    }
  });
}

}  // namespace tinyllama
