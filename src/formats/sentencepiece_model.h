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

// The same vocabulary as a tokenizer.model that the sentencepiece library loads.
std::string make_sentencepiece(const Vocab& vocab);

}  // namespace tinyllama
