// What the keys and names of a GGUF file mean for a Llama.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/config.h"
#include "formats/gguf.h"
#include "text/vocab.h"

namespace tinyllama {

// Configuration, vocabulary and tensors (views into the file's bytes); ends with
// check_checkpoint().
Checkpoint checkpoint_of_gguf(const Gguf& file);
// The vocabulary alone, also of files without tensors. Throws Error unless it is SentencePiece's
// kind.
Vocab vocab_of_gguf(const Gguf& file);

// "blk.3.attn_q.weight" for "model.layers.3.self_attn.q_proj.weight".
std::string gguf_name(std::string_view hf_name);

// Llama 3's scaling as GGUF stores it: one divisor of the frequency for each pair, head_dim / 2 of
// them.
std::vector<float> llama3_factors(const Config& config);
// The way back. The factors do not say where the original context ends, only where the bands lie in
// relation to it: `original_context` (0: unknown) or low_freq_factor 1 settles that. Throws Error
// when no Llama 3 scaling gives these factors.
RopeScaling solve_llama3(const std::vector<float>& factors, const Config& config,
                         int64_t original_context, std::string_view where);

}  // namespace tinyllama
