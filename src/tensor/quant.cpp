// The reference codecs of every data type: the definition that kernels are held to, and what the
// quantizer runs. Written so that a plain compiler vectorizes the inner loops, and with a fixed
// order of summation, so that a file's bytes do not depend on the compiler.
#include "tensor/quant.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "tensor/float16.h"

namespace tinyllama {
namespace {

// Largest finite half. Encoders of quantized types take values beyond it (infinities included) as
// it and NaN as 0, so that every scale is finite and no conversion to integer is undefined.
constexpr float kHalfMax = 65504.0f;
// Blocks with no magnitude above this are zero: their scale would vanish in FP16.
constexpr float kNothing = 1e-15f;

float tame(float x) {
  return x != x ? 0.0f : std::clamp(x, -kHalfMax, kHalfMax);
}

// Nearest integer, ties to even, as a float; |x| below 2^22. Two additions, so that it vectorizes
// on any instruction set (1.5 * 2^23 leaves no fraction bits).
float nearest(float x) {
  constexpr float kMagic = 12582912.0f;
  return (x + kMagic) - kMagic;
}

// The sum of term(i) for i in [0, N) in eight interleaved lanes, which the compiler keeps in
// registers.
template <int N, class Term>
float lane_sum(const Term& term) {
  static_assert(N % 8 == 0);
  std::array<float, 8> lanes = {};
  for (int i = 0; i < N; i += 8) {
    for (int lane = 0; lane < 8; lane++) lanes[lane] += term(i + lane);
  }
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// ---- plain floats ----

void decode_f32(const std::byte* from, float* to, int64_t n) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}
void encode_f32(const float* from, std::byte* to, int64_t n) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}

template <float (*Convert)(uint16_t)>
void decode_16(const std::byte* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    uint16_t bits;
    std::memcpy(&bits, from + 2 * i, 2);
    to[i] = Convert(bits);
  }
}
template <uint16_t (*Convert)(float)>
void encode_16(const float* from, std::byte* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const uint16_t bits = Convert(from[i]);
    std::memcpy(to + 2 * i, &bits, 2);
  }
}

// Runs `codec` over blocks of `Elements`; block structs travel by memcpy, since a mapped file
// promises no alignment.
template <class Block, int Elements, void (*Codec)(const Block&, float*)>
void decode_blocks(const std::byte* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n / Elements; i++) {
    Block block;
    std::memcpy(&block, from + i * static_cast<int64_t>(sizeof(Block)), sizeof(Block));
    Codec(block, to + i * Elements);
  }
}
template <class Block, int Elements, void (*Codec)(const float*, Block&)>
void encode_blocks(const float* from, std::byte* to, int64_t n) {
  std::array<float, Elements> x;
  for (int64_t i = 0; i < n / Elements; i++) {
    for (int j = 0; j < Elements; j++) x[j] = tame(from[i * Elements + j]);
    Block block;
    Codec(x.data(), block);
    std::memcpy(to + i * static_cast<int64_t>(sizeof(Block)), &block, sizeof(Block));
  }
}

// ---- Q4_0, Q8_0: ggml's reference rounding ----

void decode_q4_0(const BlockQ4_0& block, float* x) {
  const float d = f16_to_f32(block.d);
  for (int j = 0; j < kBlock / 2; j++) {
    x[j] = static_cast<float>((block.q[j] & 15) - 8) * d;
    x[j + kBlock / 2] = static_cast<float>((block.q[j] >> 4) - 8) * d;
  }
}

// 1 / d, or 0 where that is not finite: such a scale is zero in FP16 too.
float reciprocal(float d) {
  return std::fabs(d) < 1e-37f ? 0.0f : 1.0f / d;
}

void encode_q4_0(const float* x, BlockQ4_0& block) {
  float magnitude = 0,
        extreme = 0;  // the extreme value, with its sign, is represented exactly as -8
  for (int j = 0; j < kBlock; j++) {
    if (std::fabs(x[j]) > magnitude) {
      magnitude = std::fabs(x[j]);
      extreme = x[j];
    }
  }
  const float d = extreme / -8.0f, inverse = reciprocal(d);
  block.d = f32_to_f16(d);
  const auto code = [inverse](float value) {
    return static_cast<uint8_t>(std::min(15, static_cast<int>(value * inverse + 8.5f)));
  };
  for (int j = 0; j < kBlock / 2; j++) {
    block.q[j] = static_cast<uint8_t>(code(x[j]) | (code(x[j + kBlock / 2]) << 4));
  }
}

void decode_q8_0(const BlockQ8_0& block, float* x) {
  const float d = f16_to_f32(block.d);
  for (int j = 0; j < kBlock; j++) x[j] = static_cast<float>(block.q[j]) * d;
}

// Rounds half away from zero, as roundf, for |x| <= 127 and without the library call.
int8_t round_away(float x) {
  const float magnitude = std::fabs(x);
  const float whole = static_cast<float>(static_cast<int>(magnitude));
  const float rounded = whole + (magnitude - whole >= 0.5f ? 1.0f : 0.0f);
  return static_cast<int8_t>(std::copysign(rounded, x));
}

void encode_q8_0(const float* x, BlockQ8_0& block) {
  float magnitude = 0;
  for (int j = 0; j < kBlock; j++) magnitude = std::max(magnitude, std::fabs(x[j]));
  const float d = magnitude / 127.0f, inverse = reciprocal(d);
  block.d = f32_to_f16(d);
  for (int j = 0; j < kBlock; j++) block.q[j] = round_away(x[j] * inverse);
}

// ---- Q4_K ----

constexpr int kSub4 = 32;  // elements of one Q4_K sub-block
constexpr int kSubs4 = kSuperBlock / kSub4;

void decode_q4_k(const BlockQ4_K& block, float* x) {
  const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
  for (int j = 0; j < kSubs4; j++) {
    uint8_t scale, min;
    q4_k_scale_min(block, j, scale, min);
    const float step = d * static_cast<float>(scale), base = dmin * static_cast<float>(min);
    const uint8_t* q = block.q + j / 2 * kSub4;
    for (int i = 0; i < kSub4; i++) {
      const int code = j % 2 == 0 ? q[i] & 15 : q[i] >> 4;
      x[j * kSub4 + i] = step * static_cast<float>(code) - base;
    }
  }
}

struct Affine {
  float step = 0, base = 0;  // x ~ step * code - base, both >= 0
};

// Codes of a sub-block for a given grid, as floats in [0, 15].
void affine_codes(const float* x, float inverse, float base, float* codes) {
  for (int i = 0; i < kSub4; i++) {
    codes[i] = std::clamp(nearest((x[i] + base) * inverse), 0.0f, 15.0f);
  }
}

// One sub-block with the weights of its elements, rms + |x|: large ones matter more, small ones
// still count.
struct Sub4 {
  const float* x;
  std::array<float, kSub4> w;
  float sum_w, sum_x;  // of w and of w x

  explicit Sub4(const float* values) : x(values) {
    const float rms = std::sqrt(lane_sum<kSub4>([&](int i) { return x[i] * x[i]; }) / kSub4);
    for (int i = 0; i < kSub4; i++) w[i] = rms + std::fabs(x[i]);
    sum_w = lane_sum<kSub4>([&](int i) { return w[i]; });
    sum_x = lane_sum<kSub4>([&](int i) { return w[i] * x[i]; });
  }

  // The weighted least-squares grid for given codes; a step of 0 when there is none.
  Affine grid_of(const float* codes) const {
    const float c = lane_sum<kSub4>([&](int i) { return w[i] * codes[i]; });
    const float cc = lane_sum<kSub4>([&](int i) { return w[i] * codes[i] * codes[i]; });
    const float cx = lane_sum<kSub4>([&](int i) { return w[i] * codes[i] * x[i]; });
    const float determinant = sum_w * cc - c * c;
    if (!(determinant > 0)) return {};
    const Affine grid{(sum_w * cx - sum_x * c) / determinant, (c * cx - cc * sum_x) / determinant};
    return grid.base < 0 ? Affine{cx / cc, 0} : grid;
  }

  float error_of(const Affine& grid, const float* codes) const {
    return lane_sum<kSub4>([&](int i) {
      const float miss = grid.step * codes[i] - grid.base - x[i];
      return w[i] * miss * miss;
    });
  }
};

// The grid of a sub-block with the least weighted squared error, found by alternation: codes are
// rounded on a fan of steps around the min-max one, from the best base so far, and fitted again.
Affine fit_affine(const Sub4& sub) {
  std::array<float, kSub4> codes;
  const float low = std::min(0.0f, *std::min_element(sub.x, sub.x + kSub4));
  const float high = *std::max_element(sub.x, sub.x + kSub4);
  if (high - low < kNothing) return {0.0f, -low};
  Affine best{(high - low) / 15.0f, -low};
  affine_codes(sub.x, 1.0f / best.step, best.base, codes.data());
  float best_error = sub.error_of(best, codes.data());
  for (int trial = 0; trial <= 20; trial++) {
    const float span = high + best.base;
    if (span < kNothing) break;
    const float levels = 14.0f + 0.1f * static_cast<float>(trial);
    affine_codes(sub.x, levels / span, best.base, codes.data());
    const Affine grid = sub.grid_of(codes.data());
    if (!(grid.step > 0)) continue;
    const float error = sub.error_of(grid, codes.data());
    if (error < best_error) {
      best_error = error;
      best = grid;
    }
  }
  return best;
}

void pack_scales(const std::array<uint8_t, kSubs4>& scale, const std::array<uint8_t, kSubs4>& min,
                 uint8_t* packed) {
  for (int j = 0; j < 4; j++) {
    packed[j] = static_cast<uint8_t>(scale[j] | (scale[j + 4] >> 4) << 6);
    packed[j + 4] = static_cast<uint8_t>(min[j] | (min[j + 4] >> 4) << 6);
    packed[j + 8] = static_cast<uint8_t>((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
  }
}

// `value` in units of `unit`, rounded into [0, 63].
uint8_t six_bits(float value, float unit) {
  return unit < kNothing ? uint8_t{0}
                         : static_cast<uint8_t>(std::clamp(nearest(value / unit), 0.0f, 63.0f));
}

// The six-bit scale and min of a sub-block: of the rounded ones and their neighbours, the pair
// whose grid serves the sub-block best. Leaves the codes of that grid in `codes`.
void choose_scale(const Sub4& sub, float d, float dmin, uint8_t& scale, uint8_t& min,
                  float* codes) {
  const int scale0 = scale, min0 = min;
  std::array<float, kSub4> trial;
  float best_error = -1;
  for (int i = std::max(0, scale0 - 1); i <= std::min(63, scale0 + 1); i++) {
    for (int j = std::max(0, min0 - 1); j <= std::min(63, min0 + 1); j++) {
      const Affine grid{d * static_cast<float>(i), dmin * static_cast<float>(j)};
      affine_codes(sub.x, grid.step < kNothing ? 0.0f : 1.0f / grid.step, grid.base, trial.data());
      const float error = sub.error_of(grid, trial.data());
      if (best_error >= 0 && error >= best_error) continue;
      best_error = error;
      scale = static_cast<uint8_t>(i), min = static_cast<uint8_t>(j);
      std::copy(trial.begin(), trial.end(), codes);
    }
  }
}

void encode_q4_k(const float* x, BlockQ4_K& block) {
  std::array<Affine, kSubs4> fit;
  float max_step = 0, max_base = 0;
  for (int j = 0; j < kSubs4; j++) {
    fit[j] = fit_affine(Sub4(x + j * kSub4));
    max_step = std::max(max_step, fit[j].step);
    max_base = std::max(max_base, fit[j].base);
  }
  block.d = f32_to_f16(max_step / 63.0f);
  block.dmin = f32_to_f16(max_base / 63.0f);
  const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
  std::array<uint8_t, kSubs4> scale, min;
  std::array<float, kSuperBlock> codes;
  for (int j = 0; j < kSubs4; j++) {
    scale[j] = six_bits(fit[j].step, max_step / 63.0f);
    min[j] = six_bits(fit[j].base, max_base / 63.0f);
    choose_scale(Sub4(x + j * kSub4), d, dmin, scale[j], min[j], codes.data() + j * kSub4);
  }
  pack_scales(scale, min, block.scales);
  for (int i = 0; i < kSuperBlock / 2; i++) {
    const int first = i / kSub4 * 2 * kSub4 + i % kSub4;
    block.q[i] = static_cast<uint8_t>(static_cast<int>(codes[first]) |
                                      static_cast<int>(codes[first + kSub4]) << 4);
  }
}

// ---- Q6_K ----

constexpr int kSub6 = 16;  // elements of one Q6_K sub-block
constexpr int kSubs6 = kSuperBlock / kSub6;

// Where element i (0..255) of a Q6_K block lies: byte and shift of its low nibble and of its two
// high bits.
struct SixBitPlace {
  int low, low_shift, high, high_shift;
};
constexpr SixBitPlace six_bit_place(int i) {
  const int half = i / 128, quarter = i % 128 / 32, column = i % 32;
  return {half * 64 + quarter % 2 * 32 + column, quarter / 2 * 4, half * 32 + column, quarter * 2};
}

void decode_q6_k(const BlockQ6_K& block, float* x) {
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < kSuperBlock; i++) {
    const SixBitPlace at = six_bit_place(i);
    const int code =
        ((block.ql[at.low] >> at.low_shift) & 15) | ((block.qh[at.high] >> at.high_shift) & 3) << 4;
    x[i] = d * static_cast<float>(block.scales[i / kSub6]) * static_cast<float>(code - 32);
  }
}

// Codes of a sub-block for step 1 / inverse, as floats in [-32, 31].
void symmetric_codes(const float* x, float inverse, float* codes) {
  for (int i = 0; i < kSub6; i++) {
    codes[i] = std::clamp(nearest(x[i] * inverse), -32.0f, 31.0f);
  }
}

// The signed step of a sub-block: of a fan of step sizes around the one that maps the extreme value
// to -32, that which leaves the least squared error weighted by x^2 (the least-squares step of its
// codes).
float fit_symmetric(const float* x) {
  float extreme = 0;
  for (int i = 0; i < kSub6; i++) {
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  }
  if (std::fabs(extreme) < kNothing) return 0;
  std::array<float, kSub6> w, codes;
  for (int i = 0; i < kSub6; i++) {  // relative to the extreme, so that no square underflows
    const float share = x[i] / extreme;
    w[i] = share * share;
  }
  float best = extreme / -32.0f, best_gain = -1;
  for (int trial = -9; trial <= 9; trial++) {
    symmetric_codes(x, -(32.0f + 0.1f * static_cast<float>(trial)) / extreme, codes.data());
    const float cx = lane_sum<kSub6>([&](int i) { return w[i] * codes[i] * x[i]; });
    const float cc = lane_sum<kSub6>([&](int i) { return w[i] * codes[i] * codes[i]; });
    // With the least-squares step cx / cc the error is const - cx^2 / cc.
    if (cc > 0 && cx * (cx / cc) > best_gain) {
      best_gain = cx * (cx / cc);
      best = cx / cc;
    }
  }
  return best;
}

void encode_q6_k(const float* x, BlockQ6_K& block) {
  block = {};
  std::array<float, kSubs6> steps;
  float extreme = 0;
  for (int j = 0; j < kSubs6; j++) {
    steps[j] = fit_symmetric(x + j * kSub6);
    if (std::fabs(steps[j]) > std::fabs(extreme)) extreme = steps[j];
  }
  if (std::fabs(extreme) < kNothing) return;
  block.d = f32_to_f16(extreme / -128.0f);
  const float d = f16_to_f32(block.d);
  std::array<float, kSub6> codes;
  for (int j = 0; j < kSubs6; j++) {
    const float scale = std::clamp(nearest(steps[j] * (-128.0f / extreme)), -128.0f, 127.0f);
    block.scales[j] = static_cast<int8_t>(scale);
    const float step = d * scale;
    symmetric_codes(x + j * kSub6, std::fabs(step) < kNothing ? 0.0f : 1.0f / step, codes.data());
    for (int i = 0; i < kSub6; i++) {
      const SixBitPlace at = six_bit_place(j * kSub6 + i);
      const int code = static_cast<int>(codes[i]) + 32;
      block.ql[at.low] = static_cast<uint8_t>(block.ql[at.low] | (code & 15) << at.low_shift);
      block.qh[at.high] = static_cast<uint8_t>(block.qh[at.high] | (code >> 4) << at.high_shift);
    }
  }
}

struct Codec {
  void (*decode)(const std::byte*, float*, int64_t);
  void (*encode)(const float*, std::byte*, int64_t);
};

constexpr std::array<Codec, kDTypeCount> kCodecs = {{
    {decode_f32, encode_f32},
    {decode_16<f16_to_f32>, encode_16<f32_to_f16>},
    {decode_16<bf16_to_f32>, encode_16<f32_to_bf16>},
    {decode_blocks<BlockQ4_0, kBlock, decode_q4_0>, encode_blocks<BlockQ4_0, kBlock, encode_q4_0>},
    {decode_blocks<BlockQ8_0, kBlock, decode_q8_0>, encode_blocks<BlockQ8_0, kBlock, encode_q8_0>},
    {decode_blocks<BlockQ4_K, kSuperBlock, decode_q4_k>,
     encode_blocks<BlockQ4_K, kSuperBlock, encode_q4_k>},
    {decode_blocks<BlockQ6_K, kSuperBlock, decode_q6_k>,
     encode_blocks<BlockQ6_K, kSuperBlock, encode_q6_k>},
}};

const Codec& codec(DType dtype, int64_t n) {
  TL_CHECK(n >= 0 && n % traits(dtype).block_size == 0);
  return kCodecs.at(static_cast<size_t>(dtype));
}

}  // namespace

void q4_k_scale_min(const BlockQ4_K& block, int j, uint8_t& scale, uint8_t& min) {
  const uint8_t* s = block.scales;
  if (j < 4) {
    scale = s[j] & 63;
    min = s[j + 4] & 63;
  } else {
    scale = static_cast<uint8_t>((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    min = static_cast<uint8_t>(s[j + 4] >> 4 | (s[j] >> 6) << 4);
  }
}

void decode_row(DType dtype, const std::byte* from, float* to, int64_t n) {
  codec(dtype, n).decode(from, to, n);
}

void encode_row(DType dtype, const float* from, std::byte* to, int64_t n) {
  codec(dtype, n).encode(from, to, n);
}

}  // namespace tinyllama
