// Products of packed weights with a group of columns. One template over decoder and column count
// serves every quantized format, another every float format; each output element is reduced over k
// in one order, whatever the group's width, so that a column's result never depends on its company.
#include "backend/cpu/decode.h"
#include "backend/cpu/isa_kernels.h"

namespace tinyllama::cpu {
namespace {

// The weight stream is read once, from memory: fetched into L2 4 KB ahead, into L1 1 KB ahead.
// Either alone reaches a sixth less with one column; farther ahead is worse. Fetches `n` lines.
template <int n>
TL_INLINE void prefetch_lines(const uint8_t* from) {
  TL_UNROLL(17)
  for (int i = 0; i < n; i++) {
    prefetch_near(from + 1024 + i * 64);
    prefetch_far(from + 4096 + i * 64);
  }
}

template <int NC>
TL_INLINE void store_tile(const F (&acc)[NC][kParts], float* out, int64_t ldo, bool accumulate) {
  TL_UNROLL(16)
  for (int c = 0; c < NC; c++) {
    TL_UNROLL(4)
    for (int part = 0; part < kParts; part++) {
      float* to = out + c * ldo + part * kLanes;
      store_f(to, accumulate ? add_f(load_f(to), acc[c][part]) : acc[c][part]);
    }
  }
}

template <class D, int NC>
TL_INLINE void quantized_block(const uint8_t* rec, int b, const uint8_t* x, F (&acc)[NC][kParts]) {
  constexpr int kInFlight = NC < kInterleave ? NC : kInterleave;
  constexpr int kDots = D::kStarts == 2 ? 2 : 1;
  const uint8_t* starts = x + NC * 32;
  const uint8_t* scales = starts + D::kStarts * NC * 4;
  TL_UNROLL(4)
  for (int part = 0; part < kParts; part++) {
    I q[8];
    D::unpack(rec, b, part, q);
    const auto scale = D::scale(rec, b, part);
    TL_UNROLL(16)
    for (int c0 = 0; c0 < NC; c0 += kInFlight) {
      I dot[kInFlight][kDots];
      TL_UNROLL(4)
      for (int c = 0; c < kInFlight; c++) {
        TL_UNROLL(2)
        for (int i = 0; i < kDots; i++)
          dot[c][i] =
              D::kStarts == 0 ? set_i(0) : set_i(load_scalar_i32(starts + (i * NC + c0 + c) * 4));
      }
      TL_UNROLL(8)
      for (int g = 0; g < 8; g++) {
        TL_UNROLL(4)
        for (int c = 0; c < kInFlight; c++) {
          I& to = dot[c][kDots == 2 ? g / 4 : 0];
          const uint8_t* values = x + (c0 + c) * 32 + g * 4;
          to = D::kWide ? dot4_wide(to, q[g], values) : dot4(to, q[g], values);
        }
      }
      TL_UNROLL(4)
      for (int c = 0; c < kInFlight; c++) {
        const float sum = D::kHasMin ? load_scalar_f32(scales + (NC + c0 + c) * 4) : 0.0f;
        acc[c0 + c][part] = D::finish(acc[c0 + c][part], dot[c], scale,
                                      load_scalar_f32(scales + (c0 + c) * 4), sum);
      }
    }
  }
}

template <class D, Format format, int NC>
void quantized_tile(const uint8_t* w, const uint8_t* x, int64_t cols, float* out, int64_t ldo,
                    bool accumulate) {
  F acc[NC][kParts];
  for (int c = 0; c < NC; c++)
    for (int part = 0; part < kParts; part++) acc[c][part] = set_f(0);
  constexpr int kLines =
      static_cast<int>(record(format).bytes) / 64;  // fetched in equal parts, not in bursts
  const int64_t n = records(format, cols);
  for (int64_t r = 0; r < n; r++, w += record(format).bytes) {
    TL_UNROLL(2)
    for (int b = 0; b < D::kBlocks; b++, x += NC * kColumnBlockBytes<D>) {
      prefetch_lines<(kLines + D::kBlocks - 1) / D::kBlocks>(w + b * kLines / D::kBlocks * 64);
      quantized_block<D, NC>(w, b, x, acc);
    }
  }
  store_tile<NC>(acc, out, ldo, accumulate);
}

template <class D, Format format, int NC>
void float_tile(const uint8_t* w, const uint8_t* x, int64_t cols, float* out, int64_t ldo,
                bool accumulate) {
  F acc[NC][kParts];
  for (int c = 0; c < NC; c++)
    for (int part = 0; part < kParts; part++) acc[c][part] = set_f(0);
  const int64_t n = records(format, cols);
  TL_UNROLL(4)
  for (int64_t r = 0; r < n; r++, w += 64, x += NC * D::kColumnBytes) {
    prefetch_lines<1>(w);
    D::template step<NC>(w, x, acc);
  }
  store_tile<NC>(acc, out, ldo, accumulate);
}

// ----------------------------------------------------------------------------------------
// activations

// Symmetric int8 with one scale per 32 values, round to nearest even. Returns the scale and the
// sums of the first and second 16 quantized values.
TL_INLINE float quantize_block(const float* x, int8_t* q, int32_t sums[2]) {
  F largest = set_f(0);
  for (int i = 0; i < 32; i += kLanes) largest = max_f(largest, abs_f(load_f(x + i)));
  const float max = reduce_max_f(largest);
  const F inverse = set_f(max > 0 ? 127.0f / max : 0.0f);
  for (int half = 0; half < 2; half++) {
    I sum = set_i(0);
    for (int i = 16 * half; i < 16 * half + 16; i += kLanes) {
      const I value = int_f(mul_f(load_f(x + i), inverse));
      store_s8(q + i, value);
      sum = add_i(sum, value);
    }
    sums[half] = reduce_add_i(sum);
  }
  return max / 127.0f;
}

// Each packs elements [begin, end) of k into the group that starts at `to`; elements beyond `cols`
// are zeros.
template <class D>
void pack_quantized(const float* x, int64_t stride, int n, int64_t cols, int64_t begin, int64_t end,
                    uint8_t* to) {
  to += begin / 32 * n * kColumnBlockBytes<D>;
  for (int64_t k = begin; k < end; k += 32, to += n * kColumnBlockBytes<D>) {
    uint8_t* starts = to + n * 32;
    uint8_t* scales = starts + D::kStarts * n * 4;
    for (int c = 0; c < n; c++) {
      int32_t sums[2] = {0, 0};
      float scale = 0;
      if (k < cols) {
        scale = quantize_block(x + c * stride + k, reinterpret_cast<int8_t*>(to) + c * 32, sums);
      } else {
        memset(to + c * 32, 0, 32);
      }
      const int32_t first = -D::kOffset * (D::kStarts == 2 ? sums[0] : sums[0] + sums[1]);
      const int32_t second = -D::kOffset * sums[1];
      if (D::kStarts >= 1) memcpy(starts + c * 4, &first, 4);
      if (D::kStarts == 2) memcpy(starts + (n + c) * 4, &second, 4);
      memcpy(scales + c * 4, &scale, 4);
      const float scaled_sum = scale * static_cast<float>(sums[0] + sums[1]);
      if (D::kHasMin) memcpy(scales + (n + c) * 4, &scaled_sum, 4);
    }
  }
}

void pack_floats(const float* x, int64_t stride, int n, int64_t cols, int64_t begin, int64_t end,
                 uint8_t* to) {
  to += begin * n * 4;
  for (int64_t k = begin; k < end; k++) {
    for (int c = 0; c < n; c++, to += 4) {
      const float value = k < cols ? x[c * stride + k] : 0.0f;
      memcpy(to, &value, 4);
    }
  }
}

void pack_pairs(const float* x, int64_t stride, int n, int64_t cols, int64_t begin, int64_t end,
                uint8_t* to) {
  to += begin / 2 * n * 4;
  for (int64_t k = begin; k < end; k += 2) {
    for (int c = 0; c < n; c++, to += 4) {
      const uint16_t pair[2] = {to_bf16(x[c * stride + k]),
                                k + 1 < cols ? to_bf16(x[c * stride + k + 1]) : uint16_t{0}};
      memcpy(to, pair, 4);
    }
  }
}

}  // namespace

namespace TINYLLAMA_ISA {

void pack_columns(Format format, const float* x, int64_t stride, int n, int64_t cols, int64_t begin,
                  int64_t end, uint8_t* to) {
  const int64_t from = begin * record(format).k, until = end * record(format).k;
  switch (format) {
    case Format::f32:
    case Format::f16:
      return pack_floats(x, stride, n, cols, from, until, to);
    case Format::bf16:
      return pack_pairs(x, stride, n, cols, from, until, to);
    case Format::q4_0:
      return pack_quantized<Q4_0>(x, stride, n, cols, from, until, to);
    case Format::q8_0:
      return pack_quantized<Q8_0>(x, stride, n, cols, from, until, to);
    case Format::q4_k:
      return pack_quantized<Q4_K>(x, stride, n, cols, from, until, to);
    case Format::q6_k:
      return pack_quantized<Q6_K>(x, stride, n, cols, from, until, to);
  }
}

size_t column_bytes(Format format, int64_t cols) {
  const auto n = static_cast<size_t>(records(format, cols));
  const auto blocks = n * static_cast<size_t>(record(format).k) / 32;
  switch (format) {
    case Format::f32:
      return n * F32::kColumnBytes;
    case Format::f16:
      return n * F16::kColumnBytes;
    case Format::bf16:
      return n * BF16::kColumnBytes;
    case Format::q4_0:
      return blocks * kColumnBlockBytes<Q4_0>;
    case Format::q8_0:
      return blocks * kColumnBlockBytes<Q8_0>;
    case Format::q4_k:
      return blocks * kColumnBlockBytes<Q4_K>;
    case Format::q6_k:
      return blocks * kColumnBlockBytes<Q6_K>;
  }
  return 0;
}

// kColumns bounds the widths instantiated for this instruction set; wider entries stay null.
#define TL_WIDTHS(tile, D, format)                                          \
  {                                                                         \
    tile<D, format, 1>, tile<D, format, 2>,                                 \
        kColumns >= 4 ? tile<D, format, kColumns >= 4 ? 4 : 1> : nullptr,   \
        kColumns >= 8 ? tile<D, format, kColumns >= 8 ? 8 : 1> : nullptr,   \
        kColumns >= 16 ? tile<D, format, kColumns >= 16 ? 16 : 1> : nullptr \
  }

TileFn tile(Format format, int n) {
  static constexpr TileFn tiles[kFormats][5] = {
      TL_WIDTHS(float_tile, F32, Format::f32),       TL_WIDTHS(float_tile, F16, Format::f16),
      TL_WIDTHS(float_tile, BF16, Format::bf16),     TL_WIDTHS(quantized_tile, Q4_0, Format::q4_0),
      TL_WIDTHS(quantized_tile, Q8_0, Format::q8_0), TL_WIDTHS(quantized_tile, Q4_K, Format::q4_k),
      TL_WIDTHS(quantized_tile, Q6_K, Format::q6_k),
  };
  return tiles[static_cast<int>(format)][__builtin_ctz(static_cast<unsigned>(n))];
}

BlockFn block(Format, int64_t) {
  return nullptr;
}

}  // namespace TINYLLAMA_ISA
}  // namespace tinyllama::cpu
