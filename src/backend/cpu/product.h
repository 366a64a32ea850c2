// The inner loop of the products of training, for the instruction set being compiled: a tile of
// kProductRows rows and kProductCols columns whose sums stay in registers.
#pragma once

#include "backend/cpu/training_kernels.h"
#include "backend/cpu/vec.h"

namespace tinyllama::cpu {
namespace {

constexpr int kProductRows = kLanes == 16 ? 8 : 4;
constexpr int kProductVectors = 2;
constexpr int kProductCols = kProductVectors * kLanes;
static_assert(kProductPad % kProductRows == 0 && kProductPad % kProductCols == 0);

// c = or += a b over k in order; a's element (i, p) at a + i * a_row + p * a_depth.
TL_INLINE void product_tile(const float* a, int64_t a_row, int64_t a_depth, const float* b,
                            int64_t b_stride, int64_t k, float* c, int64_t c_stride,
                            bool accumulate) {
  F sum[kProductRows][kProductVectors];
  TL_UNROLL(8)
  for (int i = 0; i < kProductRows; i++)
    for (int v = 0; v < kProductVectors; v++) sum[i][v] = set_f(0);
  for (int64_t p = 0; p < k; p++) {
    F row[kProductVectors];
    TL_UNROLL(2)
    for (int v = 0; v < kProductVectors; v++) row[v] = load_f(b + p * b_stride + v * kLanes);
    TL_UNROLL(8)
    for (int i = 0; i < kProductRows; i++) {
      const F x = set_f(a[i * a_row + p * a_depth]);
      TL_UNROLL(2)
      for (int v = 0; v < kProductVectors; v++) sum[i][v] = fma_f(x, row[v], sum[i][v]);
    }
  }
  TL_UNROLL(8)
  for (int i = 0; i < kProductRows; i++) {
    TL_UNROLL(2)
    for (int v = 0; v < kProductVectors; v++) {
      float* to = c + i * c_stride + v * kLanes;
      store_f(to, accumulate ? add_f(load_f(to), sum[i][v]) : sum[i][v]);
    }
  }
}

// The first n of kLanes floats, zeros behind them; and their way back. n may be more than kLanes.
TL_INLINE F load_n(const float* p, int64_t n) {
  if (n >= kLanes) return load_f(p);
  float part[kLanes] = {};
  for (int64_t i = 0; i < n; i++) part[i] = p[i];
  return load_f(part);
}
TL_INLINE void store_n(float* p, F x, int64_t n) {
  if (n >= kLanes) return store_f(p, x);
  float part[kLanes];
  store_f(part, x);
  for (int64_t i = 0; i < n; i++) p[i] = part[i];
}

}  // namespace
}  // namespace tinyllama::cpu
