// The kernels of the instruction set being compiled, in a namespace of its own; table.cpp collects
// them.
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/training_kernels.h"

namespace tinyllama::cpu::TINYLLAMA_ISA {

TileFn tile(Format format, int n);
BlockFn block(Format format, int64_t n_groups);
void pack_columns(Format format, const float* x, int64_t stride, int n, int64_t cols, int64_t begin,
                  int64_t end, uint8_t* to);
size_t column_bytes(Format format, int64_t cols);

void attention(const AttentionJob& job);
void store_kv(KvFormat format, std::byte* head, int64_t head_dim, int64_t slot, const float* k,
              const float* v);
void load_kv(KvFormat format, const std::byte* head, int64_t head_dim, int64_t slot, float* k,
             float* v);

void rms_norm(const float* x, const float* w, double eps, int64_t n, float* y);
void swiglu(const float* gate, const float* up, int64_t n, float* y);
void rope(float* x, const float* cos, const float* sin, int64_t head_dim);

void product(const ProductJob& job);
void transpose(const float* x, int64_t stride, int64_t rows, int64_t cols, float* to);
void tile_of_columns(const float* x, int64_t stride, int64_t rows, int64_t cols, uint8_t* to);
void tile_of_weights(const uint8_t* tiles, size_t tile_bytes, int64_t first_row, int64_t rows,
                     int64_t first_col, int64_t cols, uint8_t* to);
void attention_backward(const AttentionBackwardJob& job);
float rms_norm_backward(const float* x, const float* w, double eps, const float* dy, int64_t n,
                        float* dx);
void norm_weight_backward(const float* x, int64_t x_stride, const float* dy, int64_t dy_stride,
                          const float* scales, int64_t rows, int64_t n, float* dw);
void swiglu_backward(const float* dy, int64_t n, float* gate, float* up);
double exponentials(float* x, int64_t n, float* largest);
void scale(float* x, int64_t n, float factor);
void add(const float* x, int64_t n, float* y);
double sum_of_squares(const float* x, int64_t n);
void adamw(const AdamWFactors& f, const float* gradient, int64_t n, float* w, float* m, float* v);

double peak_fp32(int64_t n);
double peak_bf16(int64_t n);
double peak_int8(int64_t n);
uint64_t read_memory(const uint8_t* from, size_t bytes);

}  // namespace tinyllama::cpu::TINYLLAMA_ISA
