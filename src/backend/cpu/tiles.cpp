#include "backend/cpu/tiles.h"

#include <algorithm>

#include "backend/cpu/layout.h"

namespace tinyllama::cpu {
namespace {

// The last tile where rows are not a multiple of 16: through a full tile of scratch.
void partial_product(TileFn product, const uint8_t* tile, const uint8_t* x, int64_t cols, int width,
                     int64_t rows, float* out, int64_t ldo, bool accumulate) {
  float full[kMaxColumns * kTileRows];
  product(tile, x, cols, full, kTileRows, false);
  for (int64_t c = 0; c < width; c++) {
    for (int64_t r = 0; r < rows; r++) {
      float& to = out[c * ldo + r];
      to = accumulate ? to + full[c * kTileRows + r] : full[c * kTileRows + r];
    }
  }
}

}  // namespace

int group_width(const Kernels& kernels, int64_t columns_left) {
  int width = kernels.max_columns;
  while (width > columns_left) width /= 2;
  return width;
}

void tile_products(const Kernels& kernels, Format format, const uint8_t* tiles, int64_t cols,
                   int64_t first, int64_t end, const uint8_t* x, Tensor y, bool accumulate) {
  const size_t tile = tile_bytes(format, cols), column = kernels.column_bytes(format, cols);
  const auto ldo = static_cast<int64_t>(y.row_stride / sizeof(float));
  const auto tile_at = [&](int64_t t) { return tiles + static_cast<size_t>(t) * tile; };
  const auto out_at = [&](int64_t c, int64_t t) { return y.row_as<float>(c) + t * kTileRows; };
  const int64_t full = std::min(end, y.cols / kTileRows);  // tiles from here on lack rows
  const BlockFn block = kernels.block(format, y.rows / kernels.max_columns);
  if (block != nullptr && full > first && y.rows >= kernels.max_columns) {
    block(tile_at(first), full - first, x, y.rows / kernels.max_columns, cols, out_at(0, first),
          ldo, accumulate);
  }
  for (int64_t c = 0; c < y.rows;) {
    const int width = group_width(kernels, y.rows - c);
    const TileFn product = kernels.tile(format, width);
    const uint8_t* group = x + column * static_cast<size_t>(c);
    const bool done = block != nullptr && width == kernels.max_columns;
    for (int64_t t = done ? std::max(first, full) : first; t < end; t++) {
      if (t < full) {
        product(tile_at(t), group, cols, out_at(c, t), ldo, accumulate);
      } else {
        partial_product(product, tile_at(t), group, cols, width, y.cols - t * kTileRows,
                        out_at(c, t), ldo, accumulate);
      }
    }
    c += width;
  }
}

}  // namespace tinyllama::cpu
