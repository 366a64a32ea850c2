// One struct per weight format: how a block of its packed tile becomes vectors of unsigned bytes,
// and how a block's integer dot product becomes FP32. Adding a format is adding a struct here and a
// row in layout.h.
//
// The canonical arithmetic, per output element, blocks of 32 k in order (dx: the activation block's
// scale):
//   q4_0, q8_0  acc = fma(float(dot), d * dx, acc)
//   q4_k        acc = fma(float(dot), (d * scale) * dx, acc); acc = fma(-(dmin * min), dx * sum(x),
//   acc) q6_k        acc = fma(float(scale0 * dot0 + scale1 * dot1), d * dx, acc), one dot per 16 k
// where dot is over exact int32; offsets (8, 128, 32) enter as the integer accumulator's start
// value.
#pragma once

#include "backend/cpu/layout.h"
#include "backend/cpu/vec.h"

namespace tinyllama::cpu {
namespace {

// What travels with each column of a block besides its 32 int8 values: kStarts integers, then the
// scale, then (kHasMin) scale * sum.
template <class D>
constexpr int kColumnBlockBytes = 32 + 4 * D::kStarts + 4 + (D::kHasMin ? 4 : 0);

TL_INLINE I nibble_mask() {
  return set_i(0x0f0f0f0f);
}

template <int kBlockStride>
TL_INLINE void unpack_nibbles(const uint8_t* block, int part, I* q) {
  TL_UNROLL(4)
  for (int v = 0; v < 4; v++) {
    const I raw = load_i(block + v * 64 + part * kLanes * 4);
    q[v] = and_i(raw, nibble_mask());
    q[v + 4] = and_i(shift_right<4>(raw), nibble_mask());
  }
}

struct Q4_0 {
  static constexpr int kBlocks = 2, kStarts = 1, kOffset = 8;
  static constexpr bool kHasMin = false, kWide = false;
  struct Scale {
    F d;
  };
  TL_INLINE void unpack(const uint8_t* rec, int b, int part, I* q) {
    unpack_nibbles<256>(rec + b * 256, part, q);
  }
  TL_INLINE Scale scale(const uint8_t* rec, int b, int part) {
    return {load_f16(rec + 512 + b * 32 + part * kLanes * 2)};
  }
  TL_INLINE F finish(F acc, const I* dot, Scale s, float dx, float) {
    return fma_f(float_i(dot[0]), mul_f(s.d, set_f(dx)), acc);
  }
};

struct Q8_0 {
  static constexpr int kBlocks = 2, kStarts = 1, kOffset = kWideOffset;
  static constexpr bool kHasMin = false, kWide = true;
  using Scale = Q4_0::Scale;
  TL_INLINE void unpack(const uint8_t* rec, int b, int part, I* q) {
    TL_UNROLL(8)
    for (int g = 0; g < 8; g++) q[g] = load_i(rec + b * 512 + g * 64 + part * kLanes * 4);
  }
  TL_INLINE Scale scale(const uint8_t* rec, int b, int part) {
    return {load_f16(rec + 1024 + b * 32 + part * kLanes * 2)};
  }
  TL_INLINE F finish(F acc, const I* dot, Scale s, float dx, float sum) {
    return Q4_0::finish(acc, dot, s, dx, sum);
  }
};

struct Q4_K {
  static constexpr int kBlocks = 8, kStarts = 0, kOffset = 0;
  static constexpr bool kHasMin = true, kWide = false;
  struct Scale {
    F d, min;  // of this block: d * scale and -(dmin * min), both exact in FP32
  };
  TL_INLINE void unpack(const uint8_t* rec, int b, int part, I* q) {
    unpack_nibbles<256>(rec + b * 256, part, q);
  }
  TL_INLINE Scale scale(const uint8_t* rec, int b, int part) {
    const uint8_t* bytes = rec + 2048 + b * 32 + part * kLanes;
    const uint8_t* halves = rec + 2304 + part * kLanes * 2;
    return {mul_f(load_f16(halves), float_i(load_u8(bytes))),
            sub_f(set_f(0), mul_f(load_f16(halves + 32), float_i(load_u8(bytes + 16))))};
  }
  TL_INLINE F finish(F acc, const I* dot, Scale s, float dx, float sum) {
    return fma_f(s.min, set_f(sum), fma_f(float_i(dot[0]), mul_f(s.d, set_f(dx)), acc));
  }
};

struct Q6_K {
  static constexpr int kBlocks = 8, kStarts = 2, kOffset = 32;
  static constexpr bool kHasMin = false, kWide = false;
  struct Scale {
    F d;
    I first, second;  // of k 0..15 and 16..31 of the block
  };
  TL_INLINE void unpack(const uint8_t* rec, int b, int part, I* q) {
    unpack_nibbles<256>(rec + b * 256, part, q);
    const I mask = set_i(0x30303030);
    TL_UNROLL(2)
    for (int u = 0; u < 2; u++) {
      const I high = load_i(rec + 2048 + b * 128 + u * 64 + part * kLanes * 4);
      q[4 * u] = or_i(q[4 * u], and_i(shift_left<4>(high), mask));
      q[4 * u + 1] = or_i(q[4 * u + 1], and_i(shift_left<2>(high), mask));
      q[4 * u + 2] = or_i(q[4 * u + 2], and_i(high, mask));
      q[4 * u + 3] = or_i(q[4 * u + 3], and_i(shift_right<2>(high), mask));
    }
  }
  TL_INLINE Scale scale(const uint8_t* rec, int b, int part) {
    const uint8_t* bytes = rec + 3072 + b * 32 + part * kLanes;
    return {load_f16(rec + 3328 + part * kLanes * 2), load_s8(bytes), load_s8(bytes + 16)};
  }
  TL_INLINE F finish(F acc, const I* dot, Scale s, float dx, float) {
    const I i = add_i(mul_i(s.first, dot[0]), mul_i(s.second, dot[1]));
    return fma_f(float_i(i), mul_f(s.d, set_f(dx)), acc);
  }
};

// Float formats: a record is a few k; step() adds one record's products for all columns of the
// group.
struct F32 {
  static constexpr int kColumnBytes = 4;  // per record and column
  template <int NC>
  TL_INLINE void step(const uint8_t* rec, const uint8_t* x, F (&acc)[NC][kParts]) {
    TL_UNROLL(4)
    for (int part = 0; part < kParts; part++) {
      const F w = load_f(reinterpret_cast<const float*>(rec) + part * kLanes);
      TL_UNROLL(16)
      for (int c = 0; c < NC; c++)
        acc[c][part] = fma_f(w, set_f(load_scalar_f32(x + 4 * c)), acc[c][part]);
    }
  }
};

struct F16 {
  static constexpr int kColumnBytes = 8;
  template <int NC>
  TL_INLINE void step(const uint8_t* rec, const uint8_t* x, F (&acc)[NC][kParts]) {
    TL_UNROLL(2)
    for (int k = 0; k < 2; k++) {
      TL_UNROLL(4)
      for (int part = 0; part < kParts; part++) {
        const F w = load_f16(rec + k * 32 + part * kLanes * 2);
        TL_UNROLL(16)
        for (int c = 0; c < NC; c++)
          acc[c][part] = fma_f(w, set_f(load_scalar_f32(x + (k * NC + c) * 4)), acc[c][part]);
      }
    }
  }
};

struct BF16 {
  static constexpr int kColumnBytes = 4;  // one pair
  template <int NC>
  TL_INLINE void step(const uint8_t* rec, const uint8_t* x, F (&acc)[NC][kParts]) {
    TL_UNROLL(4)
    for (int part = 0; part < kParts; part++) {
      const I w = load_i(rec + part * kLanes * 4);
      TL_UNROLL(16)
      for (int c = 0; c < NC; c++) acc[c][part] = dot2_bf16(acc[c][part], w, x + 4 * c);
    }
  }
};

}  // namespace
}  // namespace tinyllama::cpu
