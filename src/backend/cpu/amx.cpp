// BF16 products by the matrix units of AMX (Intel, Architecture Instruction Set Extensions
// Programming Reference, chapter 3), in the table of the AVX-512 kernels, which do all else. The
// unit multiplies a tile of up to 16 rows of 32 k with one of 32 k by 16 lanes: activations are the
// first (a row is a column of the group), weights the second (as layout.h has them), and a row of
// the result holds one column's 16 outputs. One instruction takes 32 k; each output's sum runs over
// them in order, whatever the number of columns.
#include <immintrin.h>

#include "backend/cpu/amx_tiles.h"
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/layout.h"
#include "backend/cpu/vec.h"

namespace tinyllama::cpu {
namespace {

constexpr int64_t kStep = 32;        // k of one instruction
constexpr size_t kTileBytes = 1024;  // of 16 rows of 64 bytes

int64_t steps(int64_t cols) {
  return (cols + kStep - 1) / kStep;
}

// The weights of one tile, a step at a time; the last step may be short, and is read from a copy
// with zeros.
class Weights {
 public:
  Weights() = default;
  Weights(const uint8_t* tile, int64_t cols, uint8_t* copy) : tile_(tile), whole_(cols / kStep) {
    if (cols % kStep == 0) return;
    memset(copy, 0, kTileBytes);
    memcpy(copy, at(whole_), static_cast<size_t>((cols % kStep + 1) / 2) * 64);
    last_ = copy;
    memory_fence();
  }
  TL_MEMBER const uint8_t* step(int64_t i) const { return i < whole_ ? at(i) : last_; }

 private:
  const uint8_t* at(int64_t i) const { return tile_ + static_cast<size_t>(i) * kTileBytes; }

  const uint8_t *tile_ = nullptr, *last_ = nullptr;
  int64_t whole_ = 0;
};

TL_INLINE void add_rows(const float (*sums)[16], int64_t columns, float* out, int64_t ldo) {
  memory_fence();
  for (int64_t c = 0; c < columns; c++)
    store_f(out + c * ldo, add_f(load_f(out + c * ldo), load_f(sums[c])));
}

// TileFn of one tile and a group of NC columns.
template <int NC>
void tile_product(const uint8_t* w, const uint8_t* x, int64_t cols, float* out, int64_t ldo,
                  bool accumulate) {
  alignas(64) uint8_t copy[kTileBytes];
  alignas(64) float sums[kGroup][16];
  const Weights weights(w, cols, copy);
  const Tiles tiles({NC, 64}, {16, 64});
  _tile_zero(0);
  for (int64_t i = 0; i < steps(cols); i++, x += NC * 64) {
    const uint8_t* rows = weights.step(i);
    TL_UNROLL(16)
    for (size_t at = 0; at < kTileBytes; at += 64) {
      prefetch_near(rows + 1024 + at);
      prefetch_far(rows + 4096 + at);
    }
    _tile_loadd(4, x, 64);
    _tile_loadd(6, rows, 64);
    _tile_dpbf16ps(0, 4, 6);
  }
  if (accumulate) {
    _tile_stored(0, sums, 64);
    add_rows(sums, NC, out, ldo);
  } else {
    _tile_stored(0, out, ldo * 4);
  }
}

// Two weight tiles with two full groups, so that each tile that is read serves two products.
TL_INLINE void two_by_two(const Weights& w0, const Weights& w1, const uint8_t* x0,
                          const uint8_t* x1, int64_t cols, float* out, int64_t ldo,
                          bool accumulate) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < steps(cols); i++, x0 += kTileBytes, x1 += kTileBytes) {
    _tile_loadd(4, x0, 64);
    _tile_loadd(6, w0.step(i), 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w1.step(i), 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, x1, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  float* const next = out + kGroup * ldo;
  if (!accumulate) {
    _tile_stored(0, out, ldo * 4);
    _tile_stored(1, out + 16, ldo * 4);
    _tile_stored(2, next, ldo * 4);
    _tile_stored(3, next + 16, ldo * 4);
    return;
  }
  alignas(64) float sums[4][kGroup][16];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  add_rows(sums[0], kGroup, out, ldo);
  add_rows(sums[1], kGroup, out + 16, ldo);
  add_rows(sums[2], kGroup, next, ldo);
  add_rows(sums[3], kGroup, next + 16, ldo);
}

void block_product(const uint8_t* w, int64_t n_tiles, const uint8_t* x, int64_t n_groups,
                   int64_t cols, float* out, int64_t ldo, bool accumulate) {
  const size_t tile = tile_bytes(Format::bf16, cols);
  const size_t group = static_cast<size_t>(steps(cols)) * kTileBytes;
  alignas(64) uint8_t copies[kTilesPerBlock][kTileBytes];
  Weights weights[kTilesPerBlock];
  for (int64_t t = 0; t < n_tiles; t++)
    weights[t] = Weights(w + static_cast<size_t>(t) * tile, cols, copies[t]);
  int64_t g = 0;
  {
    const Tiles tiles({kGroup, 64}, {16, 64});
    for (; g + 2 <= n_groups; g += 2) {
      const uint8_t* x0 = x + static_cast<size_t>(g) * group;
      for (int64_t t = 0; t + 2 <= n_tiles; t += 2) {
        two_by_two(weights[t], weights[t + 1], x0, x0 + group, cols,
                   out + g * kGroup * ldo + t * kTileRows, ldo, accumulate);
      }
    }
  }
  // What two by two leaves over.
  for (int64_t c = 0; c < n_groups; c++) {
    for (int64_t t = c < g ? n_tiles / 2 * 2 : 0; t < n_tiles; t++) {
      tile_product<kGroup>(w + static_cast<size_t>(t) * tile, x + static_cast<size_t>(c) * group,
                           cols, out + c * kGroup * ldo + t * kTileRows, ldo, accumulate);
    }
  }
}

// Groups for BF16: 32 k of each column, then the next 32.
void pack_rows(const float* x, int64_t stride, int n, int64_t cols, int64_t begin, int64_t end,
               uint8_t* to) {
  for (int64_t k = begin; k < end; k += kStep) {
    for (int c = 0; c < n; c++) {
      const float* from = x + c * stride + k;
      float padded[kStep] = {};
      if (k + kStep > cols) {
        for (int64_t i = 0; i < cols - k; i++) padded[i] = from[i];
        from = padded;
      }
      const auto pairs = _mm512_cvtne2ps_pbh(load_f(from + kLanes), load_f(from));
      _mm512_storeu_si512(to + (k / kStep * n + c) * 64, reinterpret_cast<__m512i>(pairs));
    }
  }
}

void pack_columns(Format format, const float* x, int64_t stride, int n, int64_t cols, int64_t begin,
                  int64_t end, uint8_t* to) {
  if (format != Format::bf16)
    return avx512::pack_columns(format, x, stride, n, cols, begin, end, to);
  pack_rows(x, stride, n, cols, begin * 2, end * 2, to);
}

size_t column_bytes(Format format, int64_t cols) {
  if (format != Format::bf16) return avx512::column_bytes(format, cols);
  return static_cast<size_t>(steps(cols)) * 64;
}

double peak_matrix(int64_t n) {
  alignas(64) static const uint8_t zeros[kTileBytes] = {};
  const Tiles tiles({kGroup, 64}, {16, 64});
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  for (int64_t i = 0; i < n; i++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return 4.0 * 2 * kGroup * 16 * kStep * static_cast<double>(n);
}

TileFn tile(Format format, int n) {
  if (format != Format::bf16) return avx512::tile(format, n);
  switch (n) {
    case 1:
      return tile_product<1>;
    case 2:
      return tile_product<2>;
    case 4:
      return tile_product<4>;
    case 8:
      return tile_product<8>;
    default:
      return tile_product<16>;
  }
}

BlockFn block(Format format, int64_t n_groups) {
  return format == Format::bf16 ? block_product : amx::quantized_block(format, n_groups);
}

}  // namespace

const Kernels kernels_amx = {
    "amx",
    kColumns,
    pack_columns,
    column_bytes,
    tile,
    block,
    avx512::attention,
    avx512::rms_norm,
    avx512::swiglu,
    avx512::rope,
    avx512::store_kv,
    avx512::load_kv,
    avx512::peak_fp32,
    avx512::peak_bf16,
    avx512::peak_int8,
    peak_matrix,
    avx512::read_memory,
    &training_avx512,
};

}  // namespace tinyllama::cpu
