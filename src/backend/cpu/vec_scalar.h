// Portable: 4 lanes in the compiler's vector extension, which every target maps to what it has.
// Multiply-add is two roundings here, since not every target has a fused one.
#pragma once

#include "backend/cpu/kernels.h"

namespace tinyllama::cpu {
namespace {

constexpr int kLanes = 4;
constexpr int kColumns = 2;
constexpr int kInterleave = 1;
constexpr int kQueryGroup = 1;    // queries that share one pass over keys or values
constexpr int kQueryVectors = 4;  // vectors of keys or features in such a pass
constexpr bool kDotInOne = false;
constexpr int kWideOffset = 128;

using F = float __attribute__((vector_size(16)));
using I = int32_t __attribute__((vector_size(16)));
using Bytes = uint8_t __attribute__((vector_size(16)));
using Words = uint16_t __attribute__((vector_size(16)));

TL_INLINE F set_f(float x) {
  return F{x, x, x, x};
}
TL_INLINE F load_f(const float* p) {
  F x;
  memcpy(&x, p, sizeof x);
  return x;
}
TL_INLINE void store_f(float* p, F x) {
  memcpy(p, &x, sizeof x);
}
TL_INLINE F add_f(F a, F b) {
  return a + b;
}
TL_INLINE F sub_f(F a, F b) {
  return a - b;
}
TL_INLINE F mul_f(F a, F b) {
  return a * b;
}
TL_INLINE F div_f(F a, F b) {
  return a / b;
}
TL_INLINE F sqrt_f(F a) {
  return F{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
           __builtin_sqrtf(a[3])};
}
TL_INLINE F max_f(F a, F b) {
  return a > b ? a : b;
}
TL_INLINE F min_f(F a, F b) {
  return a < b ? a : b;
}
TL_INLINE F fma_f(F a, F b, F c) {
  return a * b + c;
}
TL_INLINE F abs_f(F a) {
  return a < 0 ? -a : a;
}
TL_INLINE F round_f(F a) {
  const F magic = set_f(0x1.8p23f);  // |a| < 2^22 here: adding it rounds to nearest even
  return (a + magic) - magic;
}
TL_INLINE I int_f(F a) {
  return __builtin_convertvector(round_f(a), I);
}
TL_INLINE F scale2_f(F a, F n) {
  return a * reinterpret_cast<F>((int_f(n) + 127) << 23);
}
TL_INLINE float reduce_add_f(F a) {
  return (a[0] + a[2]) + (a[1] + a[3]);
}
TL_INLINE float reduce_max_f(F a) {
  const float x = a[0] > a[2] ? a[0] : a[2], y = a[1] > a[3] ? a[1] : a[3];
  return x > y ? x : y;
}

TL_INLINE float from_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u, mantissa = half & 0x3ffu;
  uint32_t bits = 0;
  if (exponent == 31) {
    bits = 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24f;
    memcpy(&bits, &magnitude, sizeof bits);
  }
  bits |= sign;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
TL_INLINE uint16_t to_f16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude >= 0x38800000u) {
    const uint32_t rebased = magnitude - 0x38000000u;
    return static_cast<uint16_t>(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
  }
  float shifted;
  memcpy(&shifted, &magnitude, sizeof shifted);
  shifted += 0.5f;
  memcpy(&bits, &shifted, sizeof bits);
  return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
}
TL_INLINE F load_f16(const void* p) {
  uint16_t half[4];
  memcpy(half, p, sizeof half);
  return F{from_f16(half[0]), from_f16(half[1]), from_f16(half[2]), from_f16(half[3])};
}
TL_INLINE F load_bf16(const void* p) {
  uint16_t half[4];
  memcpy(half, p, sizeof half);
  I wide;
  for (int i = 0; i < 4; i++) wide[i] = static_cast<int32_t>(static_cast<uint32_t>(half[i]) << 16);
  return reinterpret_cast<F>(wide);
}

TL_INLINE I set_i(int32_t x) {
  return I{x, x, x, x};
}
TL_INLINE I load_i(const void* p) {
  I x;
  memcpy(&x, p, sizeof x);
  return x;
}
TL_INLINE I add_i(I a, I b) {
  return a + b;
}
TL_INLINE I mul_i(I a, I b) {
  return a * b;
}
TL_INLINE I and_i(I a, I b) {
  return a & b;
}
TL_INLINE I or_i(I a, I b) {
  return a | b;
}
template <int n>
TL_INLINE I shift_right(I a) {
  return reinterpret_cast<I>(reinterpret_cast<Words>(a) >> n);
}
template <int n>
TL_INLINE I shift_left(I a) {
  return reinterpret_cast<I>(reinterpret_cast<Words>(a) << n);
}
TL_INLINE F float_i(I a) {
  return __builtin_convertvector(a, F);
}
TL_INLINE I load_u8(const void* p) {
  const auto* bytes = static_cast<const uint8_t*>(p);
  return I{bytes[0], bytes[1], bytes[2], bytes[3]};
}
TL_INLINE I load_s8(const void* p) {
  const auto* bytes = static_cast<const int8_t*>(p);
  return I{bytes[0], bytes[1], bytes[2], bytes[3]};
}
TL_INLINE void store_s8(void* p, I a) {
  auto* bytes = static_cast<int8_t*>(p);
  for (int i = 0; i < 4; i++) bytes[i] = static_cast<int8_t>(a[i]);
}
TL_INLINE int32_t reduce_add_i(I a) {
  return a[0] + a[1] + a[2] + a[3];
}

TL_INLINE I dot4(I acc, I u, const void* p) {
  const auto* x = static_cast<const int8_t*>(p);
  const auto bytes = reinterpret_cast<Bytes>(u);
  for (int lane = 0; lane < 4; lane++)
    for (int j = 0; j < 4; j++) acc[lane] += static_cast<int32_t>(bytes[4 * lane + j]) * x[j];
  return acc;
}
TL_INLINE I dot4_lanes(I acc, I u, I x) {
  const int32_t first = x[0];  // its users give all lanes the same
  return dot4(acc, u, &first);
}
TL_INLINE I dot4_wide(I acc, I u, const void* p) {
  return dot4(acc, u, p);
}
TL_INLINE F dot2_bf16(F acc, I w, const void* p) {
  const I high = set_i(static_cast<int32_t>(0xffff0000u)), x = set_i(load_scalar_i32(p));
  acc = fma_f(reinterpret_cast<F>(w & high), reinterpret_cast<F>(x & high), acc);
  return fma_f(reinterpret_cast<F>(w << 16), reinterpret_cast<F>(x << 16), acc);
}
TL_INLINE void prefetch_near(const void*) {}
TL_INLINE void prefetch_far(const void*) {}

}  // namespace
}  // namespace tinyllama::cpu
