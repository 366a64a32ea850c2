// Products of training: both matrices are copied into panels that the inner loop reads front to
// back (Goto and van de Geijn 2008), a block of kProductDepth of k at a time.
#include "backend/cpu/product.h"

#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/layout.h"

namespace tinyllama::cpu {
namespace {

// Rows of a, kProductRows of them side by side for each k; rows beyond m are zeros.
void pack_rows(const ProductJob& job, int64_t first, int64_t depth, float* to) {
  for (int64_t i = 0; i < job.m; i += kProductRows, to += kProductRows * depth) {
    const int64_t rows = job.m - i < kProductRows ? job.m - i : kProductRows;
    const float* from = job.a + i * job.a_row + first * job.a_depth;
    if (rows < kProductRows) memset(to, 0, static_cast<size_t>(kProductRows * depth) * 4);
    if (job.a_row == 1 && rows == kProductRows) {
      for (int64_t p = 0; p < depth; p++)
        memcpy(to + p * kProductRows, from + p * job.a_depth, kProductRows * 4);
    } else {
      for (int64_t r = 0; r < rows; r++)
        for (int64_t p = 0; p < depth; p++)
          to[p * kProductRows + r] = from[r * job.a_row + p * job.a_depth];
    }
  }
}

// Columns of b, kProductCols of them side by side for each k; columns beyond n are zeros.
void pack_cols(const ProductJob& job, int64_t first, int64_t depth, float* to) {
  for (int64_t j = 0; j < job.n; j += kProductCols, to += kProductCols * depth) {
    const float* from = job.b + first * job.b_stride + j;
    for (int64_t p = 0; p < depth; p++)
      for (int64_t v = 0; v < kProductCols; v += kLanes)
        store_f(to + p * kProductCols + v, load_n(from + p * job.b_stride + v, job.n - j - v));
  }
}

using Four = float __attribute__((vector_size(16)));

TL_INLINE Four load_four(const float* from) {
  Four x;
  memcpy(&x, from, sizeof x);
  return x;
}

// to[l * kProductCols + j] = columns[j][l] for 16 l.
void transpose_columns(const float (*columns)[kTileRows], float* to) {
  for (int64_t j = 0; j < kProductCols; j += 4) {
    for (int64_t l = 0; l < kTileRows; l += 4) {
      const Four a = load_four(columns[j] + l), b = load_four(columns[j + 1] + l);
      const Four c = load_four(columns[j + 2] + l), d = load_four(columns[j + 3] + l);
      const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      const Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
      const Four cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      const Four rows[4] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                            __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                            __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                            __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
      for (int64_t i = 0; i < 4; i++)
        memcpy(to + (l + i) * kProductCols + j, &rows[i], sizeof rows[i]);
    }
  }
}

// Columns [first, first + n) of one tile, decoded.
void decode_columns(Format format, const uint8_t* tile, int64_t first, int64_t n,
                    float (*to)[kTileRows]) {
  for (int64_t j = 0; j < n; j++) {
    const int64_t col = first + j;
    if (format == Format::f32) {
      memcpy(to[j], tile + col * 64, 64);
    } else {  // bf16: pairs of columns
      for (int l = 0; l < kTileRows; l++) {
        uint16_t half;
        memcpy(&half, tile + col / 2 * 64 + l * 4 + col % 2 * 2, sizeof half);
        to[j][l] = from_bf16(half);
      }
    }
  }
}

// The same panels from packed weights, whose vectors run along k.
void pack_tiles(const ProductJob& job, int64_t first, int64_t depth, float* to) {
  for (int64_t j = 0; j < job.n; j += kProductCols, to += kProductCols * depth) {
    const int64_t n = job.n - j < kProductCols ? job.n - j : kProductCols;
    for (int64_t p = 0; p < depth; p += kTileRows) {
      const uint8_t* tile =
          job.tiles + static_cast<size_t>((first + p) / kTileRows) * job.tile_bytes;
      float columns[kProductCols][kTileRows] = {};
      decode_columns(job.format, tile, job.first_col + j, n, columns);
      if (p + kTileRows <= depth) {
        transpose_columns(columns, to + p * kProductCols);
        continue;
      }
      float rows[kTileRows * kProductCols];
      transpose_columns(columns, rows);
      memcpy(to + p * kProductCols, rows, static_cast<size_t>((depth - p) * kProductCols) * 4);
    }
  }
}

// One tile of c that reaches beyond its edge, through a whole one.
void edge_tile(const float* a, const float* b, int64_t depth, int64_t rows, int64_t cols, float* c,
               int64_t c_stride, bool accumulate) {
  float whole[kProductRows * kProductCols];
  product_tile(a, 1, kProductRows, b, kProductCols, depth, whole, kProductCols, false);
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < cols; j++) {
      float& to = c[i * c_stride + j];
      to = accumulate ? to + whole[i * kProductCols + j] : whole[i * kProductCols + j];
    }
  }
}

}  // namespace

void TINYLLAMA_ISA::product(const ProductJob& job) {
  float* rows = job.scratch;
  float* cols = job.scratch + kProductDepth * padded_product(job.m);
  for (int64_t first = 0; first < job.k; first += kProductDepth) {
    const int64_t depth = job.k - first < kProductDepth ? job.k - first : kProductDepth;
    const bool accumulate = job.accumulate || first > 0;
    pack_rows(job, first, depth, rows);
    if (job.b != nullptr) {
      pack_cols(job, first, depth, cols);
    } else {
      pack_tiles(job, first, depth, cols);
    }
    for (int64_t j = 0; j < job.n; j += kProductCols) {
      const float* b = cols + j * depth;
      for (int64_t i = 0; i < job.m; i += kProductRows) {
        const float* a = rows + i * depth;
        float* c = job.c + i * job.c_stride + j;
        if (i + kProductRows <= job.m && j + kProductCols <= job.n) {
          product_tile(a, 1, kProductRows, b, kProductCols, depth, c, job.c_stride, accumulate);
        } else {
          edge_tile(a, b, depth, job.m - i < kProductRows ? job.m - i : kProductRows,
                    job.n - j < kProductCols ? job.n - j : kProductCols, c, job.c_stride,
                    accumulate);
        }
      }
    }
  }
}

}  // namespace tinyllama::cpu
