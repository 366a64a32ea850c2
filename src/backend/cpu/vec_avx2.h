// AVX2 with FMA and F16C: 8 lanes.
#pragma once

#include <immintrin.h>

#include "backend/cpu/kernels.h"

namespace tinyllama::cpu {
namespace {

constexpr int kLanes = 8;
constexpr int kColumns = 4;
constexpr int kInterleave = 2;
constexpr int kQueryGroup = 4;    // queries that share one pass over keys or values
constexpr int kQueryVectors = 2;  // vectors of keys or features in such a pass
constexpr bool kDotInOne = false;
constexpr int kWideOffset = 0;  // dot4_wide takes signs apart instead

using F = __m256;
using I = __m256i;

TL_INLINE F set_f(float x) {
  return _mm256_set1_ps(x);
}
TL_INLINE F load_f(const float* p) {
  return _mm256_loadu_ps(p);
}
TL_INLINE void store_f(float* p, F x) {
  _mm256_storeu_ps(p, x);
}
TL_INLINE F add_f(F a, F b) {
  return _mm256_add_ps(a, b);
}
TL_INLINE F sub_f(F a, F b) {
  return _mm256_sub_ps(a, b);
}
TL_INLINE F mul_f(F a, F b) {
  return _mm256_mul_ps(a, b);
}
TL_INLINE F div_f(F a, F b) {
  return _mm256_div_ps(a, b);
}
TL_INLINE F sqrt_f(F a) {
  return _mm256_sqrt_ps(a);
}
TL_INLINE F max_f(F a, F b) {
  return _mm256_max_ps(a, b);
}
TL_INLINE F min_f(F a, F b) {
  return _mm256_min_ps(a, b);
}
TL_INLINE F fma_f(F a, F b, F c) {
  return _mm256_fmadd_ps(a, b, c);
}
TL_INLINE F abs_f(F a) {
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
TL_INLINE F round_f(F a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
TL_INLINE F scale2_f(F a, F n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
TL_INLINE float reduce_add_f(F a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
TL_INLINE float reduce_max_f(F a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

TL_INLINE F load_f16(const void* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
TL_INLINE F load_bf16(const void* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
TL_INLINE uint16_t to_f16(float x) {
  const __m128i half = _mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT);
  return static_cast<uint16_t>(_mm_cvtsi128_si32(half));
}
TL_INLINE float from_f16(uint16_t x) {
  return _cvtsh_ss(x);
}

TL_INLINE I set_i(int32_t x) {
  return _mm256_set1_epi32(x);
}
TL_INLINE I load_i(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
TL_INLINE I add_i(I a, I b) {
  return _mm256_add_epi32(a, b);
}
TL_INLINE I mul_i(I a, I b) {
  return _mm256_mullo_epi32(a, b);
}
TL_INLINE I and_i(I a, I b) {
  return _mm256_and_si256(a, b);
}
TL_INLINE I or_i(I a, I b) {
  return _mm256_or_si256(a, b);
}
template <int n>
TL_INLINE I shift_right(I a) {
  return _mm256_srli_epi16(a, n);
}
template <int n>
TL_INLINE I shift_left(I a) {
  return _mm256_slli_epi16(a, n);
}
TL_INLINE F float_i(I a) {
  return _mm256_cvtepi32_ps(a);
}
TL_INLINE I int_f(F a) {
  return _mm256_cvtps_epi32(a);
}
TL_INLINE I load_u8(const void* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
}
TL_INLINE I load_s8(const void* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
}
TL_INLINE void store_s8(void* p, I a) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
TL_INLINE int32_t reduce_add_i(I a) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1));
  return _mm_cvtsi128_si32(x);
}

// u below 128, so that no pair sum reaches 2^15.
TL_INLINE I dot4_lanes(I acc, I u, I x) {
  const __m256i pairs = _mm256_maddubs_epi16(u, x);
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
TL_INLINE I dot4(I acc, I u, const void* p) {
  return dot4_lanes(acc, u, _mm256_set1_epi32(load_scalar_i32(p)));
}
TL_INLINE I dot4_wide(I acc, I u, const void* p) {
  const __m256i x = _mm256_set1_epi32(load_scalar_i32(p));
  const __m256i w = _mm256_xor_si256(u, _mm256_set1_epi8(static_cast<char>(0x80)));  // signed again
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
TL_INLINE F dot2_bf16(F acc, I w, const void* p) {
  const __m256i high = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
  const __m256i x = _mm256_set1_epi32(load_scalar_i32(p));
  acc = fma_f(_mm256_castsi256_ps(_mm256_and_si256(w, high)),
              _mm256_castsi256_ps(_mm256_and_si256(x, high)), acc);
  return fma_f(_mm256_castsi256_ps(_mm256_slli_epi32(w, 16)),
               _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), acc);
}
TL_INLINE void prefetch_near(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
TL_INLINE void prefetch_far(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace
}  // namespace tinyllama::cpu
