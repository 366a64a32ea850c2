// SentencePiece's tokenizer.model: a protobuf message read and written by hand, since of its
// hundred fields a BPE tokenizer needs a dozen.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "text/vocab.h"

namespace tinyllama {

// Reads a BPE model with identity normalization (Llama's kind). Throws Error, naming `where`, for
// any other kind and for anything malformed.
Vocab parse_sentencepiece(std::span<const std::byte> bytes, std::string_view where);

// How a vocabulary was trained: what the trainer_spec keeps for people to read. It changes nothing
// in how the model splits text.
struct TrainingRecord {
  double character_coverage = 0;
  int max_piece_length = 0;
  bool split_digits = false, split_by_unicode_script = false, allow_whitespace_only_pieces = false;
};

// The same vocabulary as a tokenizer.model that the sentencepiece library loads.
std::string make_sentencepiece(const Vocab& vocab, const TrainingRecord* training = nullptr);

}  // namespace tinyllama
