// Turning matrices into the tiles and columns of BF16 products whose sums run along the other
// dimension than the matrix is stored in.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/vec.h"

namespace tinyllama::cpu {
namespace {

using Quad = uint32_t __attribute__((vector_size(16)));

// Four words of each of four rows, `from_stride` words apart, to the columns.
TL_INLINE void transpose_four(const uint32_t* from, int64_t from_stride, uint32_t* to,
                              int64_t to_stride) {
  Quad r[4];
  for (int64_t i = 0; i < 4; i++) memcpy(&r[i], from + i * from_stride, sizeof r[i]);
  const Quad ab_low = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
  const Quad ab_high = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Quad cd_low = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Quad cd_high = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  const Quad columns[4] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                           __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                           __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                           __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
  for (int64_t i = 0; i < 4; i++) memcpy(to + i * to_stride, &columns[i], sizeof columns[i]);
}

// to_bf16 without a branch, for loops over lanes; the result in the low half.
TL_INLINE uint32_t round_bf16(uint32_t bits) {
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
}

}  // namespace

namespace TINYLLAMA_ISA {

void transpose(const float* x, int64_t stride, int64_t rows, int64_t cols, float* to) {
  const int64_t whole_rows = rows / 4 * 4, whole_cols = cols / 4 * 4;
  const auto* from = reinterpret_cast<const uint32_t*>(x);
  auto* out = reinterpret_cast<uint32_t*>(to);
  for (int64_t r = 0; r < whole_rows; r += 4)
    for (int64_t c = 0; c < whole_cols; c += 4)
      transpose_four(from + r * stride + c, stride, out + c * rows + r, rows);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = r < whole_rows ? whole_cols : 0; c < cols; c++)
      to[c * rows + r] = x[r * stride + c];
}

void tile_of_columns(const float* x, int64_t stride, int64_t rows, int64_t cols, uint8_t* to) {
  for (int64_t r = 0; r < rows; r += 2, to += 64) {
    uint32_t even[kTileRows] = {}, odd[kTileRows] = {}, pairs[kTileRows];
    memcpy(even, x + r * stride, static_cast<size_t>(cols) * 4);
    if (r + 1 < rows) memcpy(odd, x + (r + 1) * stride, static_cast<size_t>(cols) * 4);
    for (int l = 0; l < kTileRows; l++) pairs[l] = round_bf16(even[l]) | round_bf16(odd[l]) << 16;
    memcpy(to, pairs, sizeof pairs);
  }
}

void tile_of_weights(const uint8_t* tiles, size_t tile_bytes, int64_t first_row, int64_t rows,
                     int64_t first_col, int64_t cols, uint8_t* to) {
  for (int64_t r = 0; r < rows; r += kTileRows) {
    const uint8_t* tile = tiles + static_cast<size_t>((first_row + r) / kTileRows) * tile_bytes;
    // Eight records of 16 rows' pairs of columns; beyond the last column they are zeros.
    uint32_t records[kTileRows / 2][kTileRows] = {};
    memcpy(records, tile + first_col / 2 * 64, static_cast<size_t>((cols + 1) / 2) * 64);
    uint16_t halves[kTileRows][kTileRows];  // [row][column]
    auto* words = reinterpret_cast<uint32_t*>(halves);
    for (int64_t j = 0; j < kTileRows / 2; j += 4)
      for (int64_t l = 0; l < kTileRows; l += 4)
        transpose_four(records[j] + l, kTileRows, words + l * kTileRows / 2 + j, kTileRows / 2);
    for (int64_t l = 0; l < kTileRows && r + l < rows; l += 2, to += 64) {
      uint32_t pairs[kTileRows];
      for (int c = 0; c < kTileRows; c++)
        pairs[c] = halves[l][c] | static_cast<uint32_t>(halves[l + 1][c]) << 16;
      memcpy(to, pairs, sizeof pairs);
    }
  }
}

}  // namespace TINYLLAMA_ISA
}  // namespace tinyllama::cpu
