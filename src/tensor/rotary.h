// The two row orders in which files keep query and key projections.
#pragma once

#include <cstdint>

namespace tinyllama {

// The row of GGUF's (interleaved) order that holds row `r` of Hugging Face's (half-rotation) order,
// for a query or key projection whose heads have `head_dim` rows each.
constexpr int64_t interleaved_row(int64_t r, int64_t head_dim) {
  const int64_t in_head = r % head_dim, half = head_dim / 2;
  return r - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
}

}  // namespace tinyllama
