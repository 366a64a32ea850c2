// The quantized block formats (bit-compatible with GGUF files) and their reference codecs. The
// codecs are the definition; the kernels in backend/ are held to them.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace tinyllama {

inline constexpr int kBlock = 32;        // elements that share one scale in Q4_0 and Q8_0
inline constexpr int kSuperBlock = 256;  // elements of one K-quant block

// x = (q - 8) * d; byte j holds element j in its low nibble, element j + 16 in its high one.
struct BlockQ4_0 {
  uint16_t d;  // FP16
  uint8_t q[kBlock / 2];
};
// x = q * d.
struct BlockQ8_0 {
  uint16_t d;  // FP16
  int8_t q[kBlock];
};
// Eight sub-blocks of 32: x = q * (d * scale) - dmin * min; scales and mins are 6 bits each, packed
// in 12 bytes. Nibbles: each 32 bytes of q hold sub-blocks 2i (low) and 2i + 1 (high).
struct BlockQ4_K {
  uint16_t d, dmin;  // FP16
  uint8_t scales[12];
  uint8_t q[kSuperBlock / 2];
};
// Sixteen sub-blocks of 16: x = (q - 32) * d * scale; q is 4 low bits in ql and 2 high bits in qh.
struct BlockQ6_K {
  uint8_t ql[kSuperBlock / 2];
  uint8_t qh[kSuperBlock / 4];
  int8_t scales[kSuperBlock / 16];
  uint16_t d;  // FP16
};
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ8_0) == 34);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ6_K) == 210);

// The 6-bit scale and min of sub-block j (0..7) of a Q4_K block.
void q4_k_scale_min(const BlockQ4_K& block, int j, uint8_t& scale, uint8_t& min);

// Decodes `n` elements (a multiple of the block size) from `from`, any dtype, to FP32.
void decode_row(DType dtype, const std::byte* from, float* to, int64_t n);
// Encodes `n` FP32 values to `dtype`. Q4_K minimizes the squared error weighted by rms + |x|, Q6_K
// that weighted by x^2, as llama.cpp's quantizer without an importance matrix does; Q4_0 and Q8_0
// follow ggml's reference exactly.
void encode_row(DType dtype, const float* from, std::byte* to, int64_t n);

}  // namespace tinyllama
