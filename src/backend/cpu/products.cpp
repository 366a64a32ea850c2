#include "backend/cpu/products.h"

#include <algorithm>

#include "backend/cpu/layout.h"
#include "backend/cpu/tiles.h"

namespace tinyllama::cpu {
namespace {

constexpr int64_t kSerialProducts = 64 * 1024;     // multiply-adds not worth a join
constexpr int64_t kJobRows = 256, kJobCols = 512;  // largest part of an FP32 product in one job:
                                                   // both panels stay in L2
constexpr int64_t kDepth = 1024;                   // of k in a BF16 product at a time
constexpr int64_t kJobColumns = 256;               // of a in one job of a BF16 product; in L2

int64_t parts(int64_t n, int64_t part) {
  return (n + part - 1) / part;
}

}  // namespace

void Products::fp32(const ProductJob& whole, Tensor c) {
  int64_t rows = std::min(kJobRows, padded_product(whole.m));
  int64_t cols = std::min(kJobCols, padded_product(whole.n));
  const int64_t wanted = pool_.size() == 1 ? 1 : 4 * pool_.size();
  while (parts(whole.m, rows) * parts(whole.n, cols) < wanted && std::max(rows, cols) > 64)
    (rows > cols ? rows : cols) = padded_product(std::max(rows, cols) / 2);
  const int64_t across = parts(whole.n, cols);
  const auto one = [&](int64_t i, int thread) {
    const int64_t row = i / across * rows, col = i % across * cols;
    ProductJob job = whole;
    job.m = std::min(rows, whole.m - row);
    job.n = std::min(cols, whole.n - col);
    job.a += row * whole.a_row;
    if (job.b != nullptr) job.b += col;
    job.first_col = col;
    job.c = c.row_as<float>(row) + col;
    job.c_stride = static_cast<int64_t>(c.row_stride / sizeof(float));
    job.scratch = scratch_[static_cast<size_t>(thread)].floats(product_scratch(rows, cols));
    k_.product(job);
  };
  const int64_t n = parts(whole.m, rows) * across;
  if (whole.m * whole.n * whole.k <= kSerialProducts) {
    for (int64_t i = 0; i < n; i++) one(i, 0);
  } else {
    pool_.for_each(n, one);
  }
}

void Products::bf16(const ProductJob& whole, Tensor c) {
  for (int64_t first = 0; first < whole.k; first += kDepth) {
    const int64_t depth = std::min(kDepth, whole.k - first);
    pack_bf16(whole, first, depth);
    const auto* columns = reinterpret_cast<const uint8_t*>(columns_.data());
    const auto* tiles = reinterpret_cast<const uint8_t*>(tiles_.data());
    const size_t column = base_.column_bytes(Format::bf16, depth);
    const int64_t n_tiles = parts(whole.n, kTileRows), across = parts(n_tiles, kTilesPerBlock);
    pool_.for_each(parts(whole.m, kJobColumns) * across, [&](int64_t i) {
      const int64_t row = i / across * kJobColumns, tile = i % across * kTilesPerBlock;
      tile_products(
          base_, Format::bf16, tiles, depth, tile, std::min(n_tiles, tile + kTilesPerBlock),
          columns + column * static_cast<size_t>(row),
          c.rows_slice(row, std::min(kJobColumns, whole.m - row)), whole.accumulate || first > 0);
    });
  }
}

// Rows of a become columns of the product, in groups; columns of b become lanes of tiles.
void Products::pack_bf16(const ProductJob& whole, int64_t first, int64_t depth) {
  const size_t column = base_.column_bytes(Format::bf16, depth);
  const size_t tile = tile_bytes(Format::bf16, depth);
  const int64_t n_tiles = parts(whole.n, kTileRows);
  std::vector<int64_t> groups;
  for (int64_t i = 0; i < whole.m; i += group_width(base_, whole.m - i)) groups.push_back(i);
  const auto n_groups = static_cast<int64_t>(groups.size());
  auto* columns = reinterpret_cast<uint8_t*>(columns_.get(column * static_cast<size_t>(whole.m)));
  auto* tiles = reinterpret_cast<uint8_t*>(tiles_.get(tile * static_cast<size_t>(n_tiles)));
  pool_.for_each(n_groups + n_tiles, [&](int64_t item, int thread) {
    if (item < n_groups) {
      const int64_t row = groups[static_cast<size_t>(item)];
      const int width = group_width(base_, whole.m - row);
      const float* a = whole.a + row * whole.a_row + first * whole.a_depth;
      int64_t stride = whole.a_row;
      if (whole.a_depth != 1) {
        float* turned = scratch_[static_cast<size_t>(thread)].floats(width * depth);
        k_.transpose(a, whole.a_depth, depth, width, turned);
        a = turned;
        stride = depth;
      }
      base_.pack_columns(Format::bf16, a, stride, width, depth, 0, records(Format::bf16, depth),
                         columns + column * static_cast<size_t>(row));
      return;
    }
    const int64_t col = (item - n_groups) * kTileRows,
                  cols = std::min<int64_t>(kTileRows, whole.n - col);
    uint8_t* to = tiles + tile * static_cast<size_t>(item - n_groups);
    if (whole.b != nullptr) {
      k_.tile_of_columns(whole.b + first * whole.b_stride + col, whole.b_stride, depth, cols, to);
    } else {
      k_.tile_of_weights(whole.tiles, whole.tile_bytes, first, depth, col, cols, to);
    }
  });
}

}  // namespace tinyllama::cpu
