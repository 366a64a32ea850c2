// AVX-512 with VNNI and BF16: 16 lanes.
#pragma once

#include <immintrin.h>

#include "backend/cpu/kernels.h"

namespace tinyllama::cpu {
namespace {

constexpr int kLanes = 16;
constexpr int kColumns = 16;      // widest column group whose accumulators stay in registers
constexpr int kInterleave = 4;    // columns whose integer chains are in flight together
constexpr int kQueryGroup = 8;    // queries that share one pass over keys or values
constexpr int kQueryVectors = 2;  // vectors of keys or features in such a pass
constexpr bool kDotInOne = true;  // dot4_lanes is one instruction, which no compiler takes apart
constexpr int kWideOffset = 128;  // what is added to a signed byte weight to make it unsigned

using F = __m512;
using I = __m512i;

TL_INLINE F set_f(float x) {
  return _mm512_set1_ps(x);
}
TL_INLINE F load_f(const float* p) {
  return _mm512_loadu_ps(p);
}
TL_INLINE void store_f(float* p, F x) {
  _mm512_storeu_ps(p, x);
}
TL_INLINE F add_f(F a, F b) {
  return _mm512_add_ps(a, b);
}
TL_INLINE F sub_f(F a, F b) {
  return _mm512_sub_ps(a, b);
}
TL_INLINE F mul_f(F a, F b) {
  return _mm512_mul_ps(a, b);
}
TL_INLINE F div_f(F a, F b) {
  return _mm512_div_ps(a, b);
}
TL_INLINE F sqrt_f(F a) {
  return _mm512_sqrt_ps(a);
}
TL_INLINE F max_f(F a, F b) {
  return _mm512_max_ps(a, b);
}
TL_INLINE F min_f(F a, F b) {
  return _mm512_min_ps(a, b);
}
TL_INLINE F fma_f(F a, F b, F c) {
  return _mm512_fmadd_ps(a, b, c);
}
TL_INLINE F abs_f(F a) {
  return _mm512_abs_ps(a);
}
TL_INLINE F round_f(F a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
TL_INLINE F scale2_f(F a, F n) {
  return _mm512_scalef_ps(a, n);
}  // a * 2^n
TL_INLINE float reduce_add_f(F a) {
  return _mm512_reduce_add_ps(a);
}
TL_INLINE float reduce_max_f(F a) {
  return _mm512_reduce_max_ps(a);
}

TL_INLINE F load_f16(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
TL_INLINE F load_bf16(const void* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
TL_INLINE uint16_t to_f16(float x) {
  const __m128i half = _mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT);
  return static_cast<uint16_t>(_mm_cvtsi128_si32(half));
}
TL_INLINE float from_f16(uint16_t x) {
  return _cvtsh_ss(x);
}

TL_INLINE I set_i(int32_t x) {
  return _mm512_set1_epi32(x);
}
TL_INLINE I load_i(const void* p) {
  return _mm512_loadu_si512(p);
}
TL_INLINE I add_i(I a, I b) {
  return _mm512_add_epi32(a, b);
}
TL_INLINE I mul_i(I a, I b) {
  return _mm512_mullo_epi32(a, b);
}
TL_INLINE I and_i(I a, I b) {
  return _mm512_and_si512(a, b);
}
TL_INLINE I or_i(I a, I b) {
  return _mm512_or_si512(a, b);
}
template <int n>
TL_INLINE I shift_right(I a) {
  return _mm512_srli_epi16(a, n);
}
template <int n>
TL_INLINE I shift_left(I a) {
  return _mm512_slli_epi16(a, n);
}
TL_INLINE F float_i(I a) {
  return _mm512_cvtepi32_ps(a);
}
TL_INLINE I int_f(F a) {
  return _mm512_cvtps_epi32(a);
}  // to nearest even
TL_INLINE I load_u8(const void* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
TL_INLINE I load_s8(const void* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
TL_INLINE void store_s8(void* p, I a) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a));
}
TL_INLINE int32_t reduce_add_i(I a) {
  return _mm512_reduce_add_epi32(a);
}

// acc + dot of each lane's 4 unsigned bytes in u with its 4 signed bytes in x.
TL_INLINE I dot4_lanes(I acc, I u, I x) {
  return _mm512_dpbusd_epi32(acc, u, x);
}
// acc + dot of each lane's 4 unsigned bytes with the 4 signed bytes at p. The embedded broadcast
// needs assembly: GCC 12 does not fold it into the instruction.
TL_INLINE I dot4(I acc, I u, const void* p) {
#if defined(__clang__)
  return _mm512_dpbusd_epi32(acc, u, _mm512_set1_epi32(*static_cast<const int32_t*>(p)));
#else
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(u), "m"(*static_cast<const int32_t*>(p)));
  return acc;
#endif
}
// The same for bytes that use all 8 bits; u was stored with kWideOffset.
TL_INLINE I dot4_wide(I acc, I u, const void* p) {
  return dot4(acc, u, p);
}
// acc + w[1] * x[1], then + w[0] * x[0] (BF16 pairs; the pair at p).
TL_INLINE F dot2_bf16(F acc, I w, const void* p) {
  return _mm512_dpbf16_ps(
      acc, reinterpret_cast<__m512bh>(w),
      reinterpret_cast<__m512bh>(_mm512_set1_epi32(*static_cast<const int32_t*>(p))));
}
TL_INLINE void prefetch_near(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
TL_INLINE void prefetch_far(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace
}  // namespace tinyllama::cpu
