// tensor/: 16-bit floats over all their values, block layouts by hand, encoders held to error
// bounds.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "tensor/float16.h"
#include "tensor/quant.h"
#include "tensor/tensor.h"

namespace tinyllama {
namespace {

constexpr DType kAllTypes[] = {DType::f32,  DType::f16,  DType::bf16, DType::q4_0,
                               DType::q8_0, DType::q4_k, DType::q6_k};

// About N(0, 1), a function of the index.
std::vector<float> bell(int64_t n, uint64_t seed) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); i++) {
    double sum = 0;
    for (uint64_t k = 0; k < 12; k++) sum += uniform_open(hash_key(seed, i, k));
    x[i] = static_cast<float>(sum - 6);
  }
  return x;
}

std::vector<std::byte> encode(DType dtype, const std::vector<float>& x) {
  const auto n = static_cast<int64_t>(x.size());
  std::vector<std::byte> bytes(row_bytes(dtype, n));
  encode_row(dtype, x.data(), bytes.data(), n);
  return bytes;
}

std::vector<float> decode(DType dtype, const std::vector<std::byte>& bytes, size_t n) {
  std::vector<float> x(n);
  decode_row(dtype, bytes.data(), x.data(), static_cast<int64_t>(n));
  return x;
}

std::vector<float> round_trip(DType dtype, const std::vector<float>& x) {
  return decode(dtype, encode(dtype, x), x.size());
}

double relative_rms(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0, power = 0;
  for (size_t i = 0; i < x.size(); i++) {
    error += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
    power += std::pow(static_cast<double>(x[i]), 2);
  }
  return std::sqrt(error / power);
}

// The value of a float with `exponent_bits` and `mantissa_bits`, from its definition.
double value_of(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double mantissa = bits & ((1u << mantissa_bits) - 1);
  const double sign = bits >> (exponent_bits + mantissa_bits) ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return mantissa != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(1 + std::ldexp(mantissa, -mantissa_bits), exponent - bias);
}

TEST(Float16, EveryHalf) {
  for (uint32_t bits = 0; bits < 65536; bits++) {
    const auto half = static_cast<uint16_t>(bits);
    const double want = value_of(bits, 5, 10);
    const float got = f16_to_f32(half);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got));
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(got))));
      continue;
    }
    ASSERT_EQ(static_cast<double>(got), want) << bits;
    ASSERT_EQ(f32_to_f16(got), half) << bits;
  }
}

TEST(Float16, EveryBfloat) {
  for (uint32_t bits = 0; bits < 65536; bits++) {
    const auto bf16 = static_cast<uint16_t>(bits);
    const double want = value_of(bits, 8, 7);
    const float got = bf16_to_f32(bf16);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got));
      EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(got))));
      continue;
    }
    ASSERT_EQ(static_cast<double>(got), want) << bits;
    ASSERT_EQ(f32_to_bf16(got), bf16) << bits;
  }
}

// Between neighbours: the midpoint goes to the even one, its own neighbours to the nearer one.
template <class ToFloat, class FromFloat>
void expect_nearest_even(ToFloat to_float, FromFloat from_float, uint32_t infinity) {
  for (uint32_t bits = 0; bits + 1 < infinity; bits++) {
    const float low = to_float(static_cast<uint16_t>(bits));
    const float high = to_float(static_cast<uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;
    ASSERT_EQ(from_float(middle), bits % 2 == 0 ? bits : bits + 1) << bits;
    if (bits == 0 && middle < std::numeric_limits<float>::min()) continue;  // no floats around it
    ASSERT_EQ(from_float(std::nextafter(middle, low)), bits) << bits;
    ASSERT_EQ(from_float(std::nextafter(middle, high)), bits + 1) << bits;
    ASSERT_EQ(from_float(-middle), (bits % 2 == 0 ? bits : bits + 1) | 0x8000u) << bits;
  }
}

TEST(Float16, RoundsToNearestEven) {
  expect_nearest_even(f16_to_f32, f32_to_f16, 0x7c00);
  expect_nearest_even(bf16_to_f32, f32_to_bf16, 0x7f80);
  EXPECT_EQ(f32_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(INFINITY), 0x7c00);
  EXPECT_EQ(f32_to_f16(-INFINITY), 0xfc00);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
}

TEST(Traits, AreGguf) {
  EXPECT_EQ(row_bytes(DType::q4_0, 2048), 2048u / 32 * 18);
  EXPECT_EQ(row_bytes(DType::q8_0, 2048), 2048u / 32 * 34);
  EXPECT_EQ(row_bytes(DType::q4_k, 5632), 5632u / 256 * 144);
  EXPECT_EQ(row_bytes(DType::q6_k, 5632), 5632u / 256 * 210);
  EXPECT_EQ(traits(DType::bf16).gguf_type, 30u);
  EXPECT_EQ(traits(DType::q4_k).gguf_type, 12u);
  EXPECT_THROW(row_bytes(DType::q4_0, 33), std::logic_error);
  for (const DType dtype : kAllTypes) EXPECT_EQ(dtype_from_name(traits(dtype).name), dtype);
  EXPECT_THROW(dtype_from_name("q5_k"), Error);
}

TEST(Q4_0, KnownBlock) {
  std::vector<float> x(32);
  for (int i = 0; i < 32; i++)
    x[static_cast<size_t>(i)] = static_cast<float>(i - 16) / 4;  // -4 .. 3.75
  const auto bytes = encode(DType::q4_0, x);
  BlockQ4_0 block;
  std::memcpy(&block, bytes.data(), sizeof block);
  EXPECT_EQ(f16_to_f32(block.d), 0.5f);  // -4 / -8
  // Element i is min(15, floor((i - 16) / 2 + 8.5)): 0 1 1 2 2 ...; element 31 would be 16 and is
  // clipped.
  EXPECT_EQ(block.q[0], 0 | 8 << 4);
  EXPECT_EQ(block.q[1], 1 | 9 << 4);
  EXPECT_EQ(block.q[2], 1 | 9 << 4);
  EXPECT_EQ(block.q[14], 7 | 15 << 4);
  EXPECT_EQ(block.q[15], 8 | 15 << 4);
  const auto y = decode(DType::q4_0, bytes, 32);
  EXPECT_EQ(y[0], -4.0f);
  EXPECT_EQ(y[31], 3.5f);
}

TEST(Q4_0, TheExtremeKeepsItsSign) {
  std::vector<float> x(32, 0.0f);
  x[5] = 3, x[6] = -1;
  const auto y = round_trip(DType::q4_0, x);
  EXPECT_EQ(y[5], 3.0f);  // exact: (0 - 8) * (3 / -8)
  EXPECT_EQ(y[0], 0.0f);
}

TEST(Q8_0, KnownBlock) {
  std::vector<float> x(32, 0.0f);
  x[0] = -127, x[1] = 2.5f, x[2] = -2.5f, x[3] = 0.49f, x[31] = 127;
  const auto bytes = encode(DType::q8_0, x);
  BlockQ8_0 block;
  std::memcpy(&block, bytes.data(), sizeof block);
  EXPECT_EQ(f16_to_f32(block.d), 1.0f);
  EXPECT_EQ(block.q[0], -127);
  EXPECT_EQ(block.q[1], 3);  // half away from zero
  EXPECT_EQ(block.q[2], -3);
  EXPECT_EQ(block.q[3], 0);
  EXPECT_EQ(block.q[31], 127);
}

// The 6-bit fields as the format's description places them, read bit by bit.
TEST(Q4_K, ScalesAreWhereTheFormatPutsThem) {
  for (uint64_t seed = 0; seed < 200; seed++) {
    BlockQ4_K block = {};
    for (size_t i = 0; i < 12; i++) block.scales[i] = static_cast<uint8_t>(hash_key(seed, i));
    for (int j = 0; j < 8; j++) {
      uint8_t scale, min;
      q4_k_scale_min(block, j, scale, min);
      const uint8_t* s = block.scales;
      const int low_scale = j < 4 ? s[j] & 63 : s[j + 4] & 15;
      const int low_min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4;
      const int high_scale = j < 4 ? 0 : s[j - 4] >> 6, high_min = j < 4 ? 0 : s[j] >> 6;
      EXPECT_EQ(scale, low_scale + 16 * high_scale);
      EXPECT_EQ(min, low_min + 16 * high_min);
    }
  }
}

TEST(Q4_K, DecodesByHand) {
  BlockQ4_K block = {};
  block.d = f32_to_f16(0.5f), block.dmin = f32_to_f16(0.25f);
  block.scales[0] = 3;      // scale of sub-block 0
  block.scales[4] = 2;      // min of sub-block 0
  block.scales[1] = 5;      // scale of sub-block 1
  block.q[0] = 7 | 9 << 4;  // elements 0 and 32
  std::vector<std::byte> bytes(sizeof block);
  std::memcpy(bytes.data(), &block, sizeof block);
  const auto x = decode(DType::q4_k, bytes, 256);
  EXPECT_EQ(x[0], 0.5f * 3 * 7 - 0.25f * 2);
  EXPECT_EQ(x[32], 0.5f * 5 * 9);
  EXPECT_EQ(x[1], -0.25f * 2);
  EXPECT_EQ(x[255], 0.0f);
}

TEST(Q6_K, DecodesByHand) {
  BlockQ6_K block = {};
  block.d = f32_to_f16(0.5f);
  block.scales[0] = 2, block.scales[2] = -3, block.scales[8] = 1;
  block.ql[0] = 5 | 6 << 4;  // low bits of elements 0 and 64
  block.qh[0] = 1 | 2 << 2;  // high bits of elements 0 and 32
  block.ql[32] = 4;          // low bits of element 32
  block.qh[32] = 3;          // high bits of element 128
  std::vector<std::byte> bytes(sizeof block);
  std::memcpy(bytes.data(), &block, sizeof block);
  const auto x = decode(DType::q6_k, bytes, 256);
  EXPECT_EQ(x[0], 0.5f * 2 * (5 + 16 - 32));
  EXPECT_EQ(x[32], 0.5f * -3 * (4 + 32 - 32));
  EXPECT_EQ(x[128], 0.5f * 1 * (0 + 48 - 32));
}

TEST(Codecs, ErrorBounds) {
  const auto x = bell(64 * 256, 1);
  EXPECT_EQ(round_trip(DType::f32, x), x);
  EXPECT_LT(relative_rms(x, round_trip(DType::f16, x)), 3e-4);
  EXPECT_LT(relative_rms(x, round_trip(DType::bf16, x)), 2.5e-3);
  // Measured 0.0845, 0.0052, 0.0691, 0.0174; a change that loses quality fails here.
  EXPECT_LT(relative_rms(x, round_trip(DType::q4_0, x)), 0.086);
  EXPECT_LT(relative_rms(x, round_trip(DType::q8_0, x)), 0.0054);
  EXPECT_LT(relative_rms(x, round_trip(DType::q4_k, x)), 0.0705);
  EXPECT_LT(relative_rms(x, round_trip(DType::q6_k, x)), 0.0178);
}

// Every value within half a step of its block's grid, a whole one where Q4_0 clips.
TEST(Codecs, EveryElementIsNearItsValue) {
  const auto x = bell(16 * 256, 2);
  const auto q4 = round_trip(DType::q4_0, x), q8 = round_trip(DType::q8_0, x);
  for (size_t block = 0; block < x.size(); block += 32) {
    float most = 0;
    for (size_t i = block; i < block + 32; i++) most = std::max(most, std::fabs(x[i]));
    for (size_t i = block; i < block + 32; i++) {
      EXPECT_LE(std::fabs(q4[i] - x[i]), most / 8 * 1.01f);
      EXPECT_LE(std::fabs(q8[i] - x[i]), most / 127 * 0.5f + most * 6e-4f);
    }
  }
}

// What is on the grid already comes back bit for bit, so that quantizing twice changes nothing.
TEST(Codecs, Idempotent) {
  const auto x = bell(8 * 256, 3);
  for (const DType dtype : {DType::f16, DType::bf16, DType::q4_0, DType::q8_0}) {
    const auto once = encode(dtype, x);
    EXPECT_EQ(encode(dtype, decode(dtype, once, x.size())), once) << traits(dtype).name;
  }
}

TEST(Codecs, ConstantsAndZeros) {
  for (const DType dtype : kAllTypes) {
    for (const float value : {0.0f, 1.0f, -1.0f, 0.01f, 1e-30f}) {
      const auto y = round_trip(dtype, std::vector<float>(256, value));
      for (const float got : y)
        EXPECT_NEAR(got, value, std::fabs(value) * 0.01f + 1e-7f) << traits(dtype).name;
    }
  }
}

// Whatever comes in, quantized types give finite numbers; NaN counts as 0 and does not spoil its
// block.
TEST(Codecs, HostileValues) {
  const float evil[] = {NAN,    INFINITY, -INFINITY, 3e38f, -3e38f,
                        1e-45f, -1e-40f,  65504.0f,  1e-8f, -0.0f};
  for (const DType dtype : {DType::q4_0, DType::q8_0, DType::q4_k, DType::q6_k}) {
    for (uint64_t seed = 0; seed < 300; seed++) {
      auto x = bell(256, seed);
      for (size_t i = 0; i < x.size(); i++) {
        const uint64_t key = hash_key(seed, 77, i);
        if (key % (1 + seed % 40) == 0) x[i] = evil[(key >> 8) % std::size(evil)];
      }
      for (const float y : round_trip(dtype, x))
        ASSERT_TRUE(std::isfinite(y)) << traits(dtype).name;
    }
    auto x = bell(256, 9);
    x[3] = NAN;
    auto clean = x;
    clean[3] = 0;
    EXPECT_EQ(encode(dtype, x), encode(dtype, clean)) << traits(dtype).name;
  }
  EXPECT_TRUE(std::isnan(round_trip(DType::f16, {NAN})[0]));
  EXPECT_TRUE(std::isinf(round_trip(DType::bf16, {INFINITY})[0]));
}

TEST(Codecs, BlocksAreWhole) {
  std::vector<float> x(256);
  std::vector<std::byte> bytes(1024);
  EXPECT_THROW(encode_row(DType::q4_k, x.data(), bytes.data(), 128), std::logic_error);
  EXPECT_THROW(decode_row(DType::q4_0, bytes.data(), x.data(), 31), std::logic_error);
}

}  // namespace
}  // namespace tinyllama
