// A SentencePiece vocabulary as plain data: what every model file format (tokenizer.model, tokenizer.json,
// GGUF metadata, llama2.c's tok*.bin) is read into, and all that the tokenizer sees.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tinyllama {

using TokenId = int32_t;
inline constexpr TokenId kNoToken = -1;

// The values of SentencePiece's ModelProto.SentencePiece.Type; GGUF uses the same numbers.
enum class PieceType : uint8_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6,
};

struct Piece {
  std::string text;  // UTF-8; U+2581 (LOWER ONE EIGHTH BLOCK) stands for a space; a byte piece is "<0x41>"
  float score = 0;   // merges happen in order of score, highest first; ties go to the leftmost
  PieceType type = PieceType::normal;
};

struct Vocab {
  std::vector<Piece> pieces;  // index = token id
  TokenId bos = kNoToken, eos = kNoToken, unk = kNoToken, pad = kNoToken;
  std::vector<TokenId> extra_eos;  // further ids that end a turn (generation_config's list, <|im_end|>)
  bool add_bos = true;             // whether encode() of a whole prompt starts with bos
  bool add_eos = false;
  bool add_dummy_prefix = true;  // a space before the first word, as Llama's tokenizer has it
  bool remove_extra_whitespaces = false;
  std::string chat_template;  // Jinja source from the model's metadata; empty when there is none
};

}  // namespace tinyllama
