// Picks the vector header of the instruction set this source is being compiled for. Each of them
// defines, in an unnamed namespace so that nothing leaks between the compilations:
//   kLanes; F (kLanes floats), I (kLanes int32, or 4 kLanes bytes); load, store, arithmetic,
//   conversions; dot4 (bytes), dot2_bf16 (BF16 pairs), reductions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define TL_INLINE static inline __attribute__((always_inline))
#define TL_MEMBER inline __attribute__((always_inline))
#if defined(__clang__)
#define TL_UNROLL(n)  // clang unrolls loops of constant length by itself
#else
#define TL_PRAGMA(text) _Pragma(#text)
#define TL_UNROLL(n) TL_PRAGMA(GCC unroll n)
#endif

namespace tinyllama::cpu {
namespace {

TL_INLINE float load_scalar_f32(const void* p) {
  float value;
  memcpy(&value, p, sizeof value);
  return value;
}
TL_INLINE int32_t load_scalar_i32(const void* p) {
  int32_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace
}  // namespace tinyllama::cpu

#if defined(TINYLLAMA_ISA_avx512)
#include "backend/cpu/vec_avx512.h"
#elif defined(TINYLLAMA_ISA_avx2)
#include "backend/cpu/vec_avx2.h"
#else
#include "backend/cpu/vec_scalar.h"
#endif

namespace tinyllama::cpu {
namespace {

constexpr int kParts = kTileRows / kLanes;  // vectors that make up the 16 lanes of a tile

// Scalar conversions, round to nearest even; same results on every instruction set.
TL_INLINE uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
TL_INLINE float from_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// exp(x) to about 1 ulp for x <= 88 (Cephes' expf polynomial); below -87.3 it stays at exp(-87.3),
// 1e-38.
TL_INLINE F exp_f(F x) {
  x = min_f(max_f(x, set_f(-87.3f)), set_f(88.0f));
  const F n = round_f(mul_f(x, set_f(1.44269504088896341f)));
  F r = fma_f(n, set_f(-0.693359375f), x);
  r = fma_f(n, set_f(2.12194440e-4f), r);
  F p = set_f(1.9875691500e-4f);
  p = fma_f(p, r, set_f(1.3981999507e-3f));
  p = fma_f(p, r, set_f(8.3334519073e-3f));
  p = fma_f(p, r, set_f(4.1665795894e-2f));
  p = fma_f(p, r, set_f(1.6666665459e-1f));
  p = fma_f(p, r, set_f(5.0000001201e-1f));
  p = fma_f(p, mul_f(r, r), add_f(r, set_f(1.0f)));
  return scale2_f(p, n);
}

}  // namespace
}  // namespace tinyllama::cpu
