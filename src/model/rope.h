// RoPE frequencies of every scaling variant. Frequencies are computed in double precision and fixed
// when a sequence is admitted, so that its bits never depend on what is decoded later.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "formats/config.h"

namespace tinyllama {

struct RopeFrequencies {
  std::vector<double> inv_freq;  // radians per position: (head_dim / 2)
  double scale = 1;              // multiplies cos and sin (YaRN's attention factor)
};

// `length` is the sequence's declared length (prompt plus maximum new tokens); only dynamic NTK
// reads it. Formulas: linear (Chen et al. 2023), dynamic NTK and YaRN (Peng et al. 2023),
// Llama 3.1's smoothed one, as Hugging Face's modeling_rope_utils defines them.
RopeFrequencies rope_frequencies(const Config& config, int64_t length);

// cos then sin of position * inv_freq, times scale: 2 * inv_freq.size() floats at `to`. A negative
// position turns back.
void rope_row(std::span<const double> inv_freq, double scale, int64_t position, float* to);
inline void rope_row(const RopeFrequencies& frequencies, int64_t position, float* to) {
  rope_row(frequencies.inv_freq, frequencies.scale, position, to);
}

}  // namespace tinyllama
