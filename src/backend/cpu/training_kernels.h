// The kernels of training, as kernels.h has those of inference: plain functions over raw memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/kernels.h"

namespace tinyllama::cpu {

// c (m, n) = or += a b; each element is summed over k in order, kProductDepth of them at a time.
struct ProductJob {
  const float* a;  // element (i, p) at a + i * a_row + p * a_depth
  int64_t a_row, a_depth;
  const float* b;  // (k, n), rows b_stride floats apart; or null, and then the next three
  int64_t b_stride;
  const uint8_t* tiles;  // rows [0, k) of packed weights
  size_t tile_bytes;
  int64_t first_col;  // of the packed weights: column 0 of b
  Format format;      // f32 or bf16
  float* c;           // rows c_stride floats apart
  int64_t c_stride;
  int64_t m, n, k;
  bool accumulate;
  float* scratch;  // product_scratch() floats, 64-byte aligned
};
inline constexpr int64_t kProductDepth = 256;
inline constexpr int64_t kProductPad = 32;  // m and n are rounded up to this within a job
constexpr int64_t padded_product(int64_t n) {
  return (n + kProductPad - 1) / kProductPad * kProductPad;
}
constexpr int64_t product_scratch(int64_t m, int64_t n) {
  return kProductDepth * (padded_product(m) + padded_product(n));
}

// One query head of one sequence that begins at position 0.
struct AttentionBackwardJob {
  int64_t n_rows, head_dim;
  const float *q, *k, *v;  // rows qkv_stride floats apart
  int64_t qkv_stride;
  const float *y, *dy;  // rows y_stride floats apart
  int64_t y_stride;
  const float *largest, *sums;  // of each row's scores, softmax_stride floats apart
  int64_t softmax_stride;
  float* dq;  // rows dq_stride floats apart
  int64_t dq_stride;
  float *dk, *dv;  // (n_rows, head_dim): this query head's part, overwritten
  float* scratch;  // attention_backward_scratch() floats, 64-byte aligned
};
constexpr int64_t attention_backward_scratch(int64_t n_rows, int64_t head_dim) {
  constexpr int64_t kBlock = 64;
  return (n_rows + 15) / 16 * 16 + 2 * kBlock * head_dim + 6 * kBlock * padded_product(head_dim) +
         2 * kBlock * kBlock;
}

// What one step of AdamW multiplies by, in the order of use.
struct AdamWFactors {
  float gradient;          // clipping
  float keep;              // 1 - lr * weight_decay
  float beta1, beta2;      // of the moments
  float denominator, eps;  // 1 / sqrt(1 - beta2^step)
  float rate;              // lr / (1 - beta1^step)
  float rest1, rest2;      // 1 - beta1, 1 - beta2
};

struct TrainingKernels {
  void (*product)(const ProductJob& job);
  // BF16 products run on the tiles and columns of kernels.h; these make them.
  // x (rows, cols) to `to` (cols, rows), FP32.
  void (*transpose)(const float* x, int64_t stride, int64_t rows, int64_t cols, float* to);
  // A tile whose lanes are up to 16 columns of x, over its rows.
  void (*tile_of_columns)(const float* x, int64_t stride, int64_t rows, int64_t cols, uint8_t* to);
  // A tile whose lanes are columns [first_col, first_col + cols) of packed BF16 weights, over rows
  // [first_row, first_row + rows) of them, first_row and first_col multiples of 16.
  void (*tile_of_weights)(const uint8_t* tiles, size_t tile_bytes, int64_t first_row, int64_t rows,
                          int64_t first_col, int64_t cols, uint8_t* to);
  void (*attention_backward)(const AttentionBackwardJob& job);
  // One row: dx += its gradient; returns 1 / sqrt(mean(x^2) + eps).
  float (*rms_norm_backward)(const float* x, const float* w, double eps, const float* dy, int64_t n,
                             float* dx);
  // dw[i] += the sum over rows of dy x scales, rows in order, for n columns.
  void (*norm_weight_backward)(const float* x, int64_t x_stride, const float* dy, int64_t dy_stride,
                               const float* scales, int64_t rows, int64_t n, float* dw);
  // gate and up become their gradients.
  void (*swiglu_backward)(const float* dy, int64_t n, float* gate, float* up);
  // x = exp(x - max(x)); returns its sum, and max(x) in `largest`.
  double (*exponentials)(float* x, int64_t n, float* largest);
  void (*scale)(float* x, int64_t n, float factor);  // x *= factor
  void (*add)(const float* x, int64_t n, float* y);  // y += x
  double (*sum_of_squares)(const float* x, int64_t n);
  void (*adamw)(const AdamWFactors& f, const float* gradient, int64_t n, float* w, float* m,
                float* v);
};

extern const TrainingKernels training_scalar;
extern const TrainingKernels training_avx2;
extern const TrainingKernels training_avx512;

}  // namespace tinyllama::cpu
