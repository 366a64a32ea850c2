// The packed layout of weights, shared by the packer and the kernels. A tile is 16 rows over all of
// k, stored as a sequence of records, each a whole number of cache lines; lane l of every vector is
// row l of the tile.
//
//   f32   record = 1 k:    16 floats
//   f16   record = 2 k:    2 x 16 halves
//   bf16  record = 2 k:    lane l holds the pair (w[2k], w[2k + 1])
//   q4_0  record = 2 blocks: 2 x 256 B nibbles, then 2 x 16 FP16 scales
//   q8_0  record = 2 blocks: 2 x 512 B of q + 128, then 2 x 16 FP16 scales
//   q4_k  record = 8 blocks: 8 x 256 B nibbles, 8 x (16 scales, 16 mins) as bytes, 16 FP16 d, 16
//   FP16 dmin q6_k  record = 8 blocks: 8 x 256 B low nibbles, 8 x 128 B high bit pairs, 8 x (16,
//   16) int8 scales of the
//         block's two halves, 16 FP16 d, padded to a line
//
// A block is 32 k. Nibbles: vector v (0..3) of a block holds in byte j of lane l k = 4v + j (low
// nibble) and k = 16 + 4v + j (high). Bytes: vector g (0..7) holds k = 4g + j. High pairs: vector u
// (0..1) holds those of vectors g = 4u..4u + 3 at bits 2 (g % 4).
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/kernels.h"

namespace tinyllama::cpu {

struct RecordLayout {
  int k;         // columns in one record
  size_t bytes;  // of one record
};

constexpr RecordLayout kRecords[kFormats] = {
    {1, 64}, {2, 64}, {2, 64}, {64, 576}, {64, 1088}, {256, 2368}, {256, 3392},
};

constexpr RecordLayout record(Format format) {
  return kRecords[static_cast<int>(format)];
}
constexpr int64_t records(Format format, int64_t cols) {
  return (cols + record(format).k - 1) / record(format).k;
}
constexpr size_t tile_bytes(Format format, int64_t cols) {
  return static_cast<size_t>(records(format, cols)) * record(format).bytes;
}

}  // namespace tinyllama::cpu
