// A Hugging Face folder as a whole: which files it consists of and how they fit together.
#pragma once

#include <string>

#include "formats/checkpoint.h"
#include "text/vocab.h"

namespace tinyllama {

// `weights` is the one .safetensors file to read, or empty for what the folder holds.
Checkpoint open_hf_folder(const std::string& folder, const std::string& weights);

// From tokenizer.model with what tokenizer.json adds to it, else from tokenizer.json alone; nothing
// when neither is there. tokenizer_config.json, added_tokens.json and chat_template.jinja are taken
// in.
std::optional<Vocab> open_hf_vocab(const std::string& folder);

// The tokenizer's files alone, into a folder that exists; `context`: the model's, in positions.
void write_hf_vocab(const Vocab& vocab, int64_t context, const std::string& folder);

// What transformers puts into one weight file at most, in bytes.
inline constexpr uint64_t kMaxShard = 5'000'000'000;

// write_hf_folder() with another size of shards.
void write_hf_folder(const Checkpoint& from, const FillRows& fill, const std::string& path,
                     DType dtype, const Progress& progress, uint64_t max_shard);

}  // namespace tinyllama
