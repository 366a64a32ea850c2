// Loops that reach the machine's arithmetic and memory limits with the very instructions the
// kernels use: what `tinyllama bench` divides by.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/vec.h"

namespace tinyllama::cpu::TINYLLAMA_ISA {
namespace {

constexpr int kChains =
    12;  // enough to cover the latency of two units, few enough to stay in registers

// Makes a value one that the compiler knows nothing of: equal chains must not become one.
template <class T>
TL_INLINE T opaque(T value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#endif
  return value;
}

// Keeps a value alive without storing it.
template <class T>
TL_INLINE void keep(T value) {
#if defined(__x86_64__)
  asm volatile("" : : "x"(value));
#elif defined(__aarch64__)
  asm volatile("" : : "w"(value));
#endif
}

}  // namespace

double peak_fp32(int64_t n) {
  F acc[kChains];
  TL_UNROLL(12)
  for (int c = 0; c < kChains; c++) acc[c] = opaque(set_f(1));
  const F scale = set_f(0.999f), add = set_f(0.001f);
  for (int64_t i = 0; i < n; i++) {
    TL_UNROLL(12)
    for (int c = 0; c < kChains; c++) acc[c] = fma_f(acc[c], scale, add);
  }
  TL_UNROLL(12)
  for (int c = 0; c < kChains; c++) keep(acc[c]);
  return 2.0 * kChains * kLanes * static_cast<double>(n);
}

double peak_bf16(int64_t n) {
  F acc[kChains];
  TL_UNROLL(12)
  for (int c = 0; c < kChains; c++) acc[c] = opaque(set_f(0));
  const I w = set_i(0x3c003c00);  // pairs of 2^-7
  alignas(64) int32_t pair[1] = {0x3c003c00};
  asm volatile("" : "+m"(pair));
  for (int64_t i = 0; i < n; i++) {
    TL_UNROLL(12)
    for (int c = 0; c < kChains; c++) acc[c] = dot2_bf16(acc[c], w, pair);
  }
  TL_UNROLL(12)
  for (int c = 0; c < kChains; c++) keep(acc[c]);
  return 4.0 * kChains * kLanes * static_cast<double>(n);
}

double peak_int8(int64_t n) {
  I acc[kChains];
  TL_UNROLL(12)
  for (int c = 0; c < kChains; c++) acc[c] = opaque(set_i(0));
  // Operands in registers: loading them is the kernels' affair. What takes several instructions is
  // opaque each time, since its first ones would be computed once for all.
  const I u = opaque(set_i(0x01010101)), x = opaque(set_i(0x01ff01ff));
  for (int64_t i = 0; i < n; i++) {
    TL_UNROLL(12)
    for (int c = 0; c < kChains; c++) acc[c] = dot4_lanes(acc[c], kDotInOne ? u : opaque(u), x);
  }
  TL_UNROLL(12)
  for (int c = 0; c < kChains; c++) keep(acc[c]);
  return 8.0 * kChains * kLanes * static_cast<double>(n);
}

uint64_t read_memory(const uint8_t* from, size_t bytes) {
  I sums[4] = {set_i(0), set_i(0), set_i(0), set_i(0)};
  constexpr size_t kStep = kLanes * 4;
  for (size_t at = 0; at + 16 * kStep <= bytes; at += 16 * kStep) {
    TL_UNROLL(16)
    for (size_t i = 0; i < 16; i++) {
      if (i * kStep % 64 == 0) prefetch_near(from + at + 2048 + i * kStep);
      sums[i % 4] = add_i(sums[i % 4], load_i(from + at + i * kStep));
    }
  }
  return static_cast<uint64_t>(
      static_cast<uint32_t>(reduce_add_i(add_i(add_i(sums[0], sums[1]), add_i(sums[2], sums[3])))));
}

}  // namespace tinyllama::cpu::TINYLLAMA_ISA
