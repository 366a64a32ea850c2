// Which tensor is stored in which type, and a model as a smaller GGUF file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/parallel.h"
#include "formats/checkpoint.h"
#include "formats/config.h"

namespace tinyllama {

// "f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m".
std::vector<std::string> quantize_types();

// The type of each tensor in a file of the given type, as llama.cpp's quantizer chooses: norms in
// FP32; in 4-bit files the head (or the embedding that serves as one) in Q6_K; in q4_k_m also the
// value and down projections of the layers that suffer most. Rows that are no multiple of a type's
// block fall back to q8_0, then to f16. Throws Error for an unknown type, listing the known ones.
DTypeChoice quantize_policy(std::string_view type, const Config& config);

// What the policy had to give up for this shape, for the user to read; usually nothing.
std::vector<std::string> quantize_notes(std::string_view type, const Config& config);

struct QuantizeResult {
  uint64_t bytes_before = 0, bytes_after = 0;  // of all tensors
  std::vector<std::string> notes;              // the checkpoint's and the policy's
};

// Opens `in` (whatever open_checkpoint() reads) and writes the GGUF file `out`, atomically.
QuantizeResult quantize_model(const std::string& in, const std::string& out, std::string_view type,
                              ThreadPool& pool, const Progress& progress);

}  // namespace tinyllama
