// The table of CPU kernels: plain functions over raw memory, compiled once per instruction set from
// one source. Kernels know vectors and layouts; threads, tensors and errors are the caller's
// business.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tinyllama::cpu {

// Rows of a packed weight tile; vector lanes are rows, so no product needs a horizontal sum.
inline constexpr int kTileRows = 16;
inline constexpr int kMaxColumns = 16;  // widest column group of any instruction set
inline constexpr int64_t kTilesPerBlock =
    4;  // tiles that share one pass over the columns; stay in L2

// How a packed weight matrix is laid out; one per data type (same order as DType).
enum class Format : uint8_t { f32, f16, bf16, q4_0, q8_0, q4_k, q6_k };
inline constexpr int kFormats = 7;
enum class KvFormat : uint8_t { f32, f16, bf16, q8_0 };

// One kv head's queries of consecutive rows of one sequence against its cache.
struct AttentionJob {
  const int32_t* blocks;   // block table of the sequence
  const std::byte* cache;  // the layer's blocks, at this kv head's offset within a block
  size_t block_bytes;
  KvFormat format;
  int64_t head_dim;
  int64_t group;           // query heads that share the kv head
  int64_t first_position;  // of the first row; row i sees positions 0..first_position + i
  int64_t n_rows;
  const float* q;  // row i's query heads, (group, head_dim), at q + i * q_stride floats
  int64_t q_stride;
  float* out;  // likewise
  int64_t out_stride;
  float *largest, *sums;  // null, or row i's (group) at i * softmax_stride: see Backend::attention
  int64_t softmax_stride;
  float* scratch;  // attention_scratch() floats, 64-byte aligned
};

constexpr int64_t padded_head_dim(int64_t head_dim) {
  return (head_dim + 15) / 16 * 16;
}
// Floats that one job of n_rows rows needs: the queries' state, and one block in FP32.
constexpr int64_t attention_scratch(int64_t n_rows, int64_t group, int64_t head_dim) {
  const int64_t queries = (n_rows * group + 7) / 8 * 8;  // whole passes
  return queries * (3 * padded_head_dim(head_dim) + 64 + 16) +
         64 * (head_dim + padded_head_dim(head_dim));
}
// Bytes of one kv head in one block: keys (head_dim, 64), then values (64, padded head_dim); Q8_0
// then has the keys' FP16 scales, (ceil(head_dim / 32), 64), and the values', (64, ceil(head_dim /
// 32)).
inline constexpr int64_t kKvScaled = 32;  // features that share a scale
constexpr int64_t kv_scales(int64_t head_dim) {
  return (head_dim + kKvScaled - 1) / kKvScaled;
}
constexpr size_t kv_head_bytes(KvFormat format, int64_t head_dim) {
  const auto elements = static_cast<size_t>(64 * (head_dim + padded_head_dim(head_dim)));
  switch (format) {
    case KvFormat::f32:
      return elements * 4;
    case KvFormat::f16:
    case KvFormat::bf16:
      return elements * 2;
    case KvFormat::q8_0:
      return elements + static_cast<size_t>(2 * 64 * kv_scales(head_dim)) * 2;
  }
  return 0;
}

// out[c * ldo + r] = or += sum over k of w[r][k] * x[c][k], for one tile of 16 rows and one column
// group.
inline constexpr int64_t kSliceRecords = 16;

using TileFn = void (*)(const uint8_t* w, const uint8_t* x, int64_t cols, float* out, int64_t ldo,
                        bool accumulate);
// The same for n_tiles (1 to kTilesPerBlock) consecutive tiles and n_groups consecutive groups of
// kMaxColumns; the bits are the same.
using BlockFn = void (*)(const uint8_t* w, int64_t n_tiles, const uint8_t* x, int64_t n_groups,
                         int64_t cols, float* out, int64_t ldo, bool accumulate);

struct TrainingKernels;  // training_kernels.h

struct Kernels {
  const char* name;
  int max_columns;  // a power of two; column groups are max_columns, ..., 4, 2, 1 wide

  // Packs `n` columns (activation rows of `cols` floats, `stride` floats apart) as one column group
  // for products with weights of `format`, records [begin, end) of it (begin a multiple of
  // kSliceRecords); a whole group takes
  // n * column_bytes(format, cols) bytes from `to`.
  void (*pack_columns)(Format format, const float* x, int64_t stride, int n, int64_t cols,
                       int64_t begin, int64_t end, uint8_t* to);
  size_t (*column_bytes)(Format format, int64_t cols);
  // For groups of n columns.
  TileFn (*tile)(Format format, int n);
  // For n_groups groups of kMaxColumns; null where nothing is better than tile by tile.
  BlockFn (*block)(Format format, int64_t n_groups);

  void (*attention)(const AttentionJob& job);
  void (*rms_norm)(const float* x, const float* w, double eps, int64_t n, float* y);
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* y);
  // Half-rotation of one head: cos and sin are head_dim / 2 long.
  void (*rope)(float* x, const float* cos, const float* sin, int64_t head_dim);
  // Writes one position (slot 0..63) of one kv head into its part of a block.
  void (*store_kv)(KvFormat format, std::byte* head, int64_t head_dim, int64_t slot, const float* k,
                   const float* v);
  void (*load_kv)(KvFormat format, const std::byte* head, int64_t head_dim, int64_t slot, float* k,
                  float* v);

  // Machine peaks: `n` rounds of independent multiply-adds; returns operations done (2 per
  // multiply-add).
  double (*peak_fp32)(int64_t n);
  double (*peak_bf16)(int64_t n);
  double (*peak_int8)(int64_t n);
  double (*peak_matrix)(int64_t n);  // BF16 by matrix units; null where there are none
  uint64_t (*read_memory)(const uint8_t* from,
                          size_t bytes);  // a checksum, so that the reads happen

  const TrainingKernels* training;
};

extern const Kernels kernels_scalar;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_amx;

}  // namespace tinyllama::cpu
