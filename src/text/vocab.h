// A SentencePiece vocabulary as plain data: what every model file format (tokenizer.model,
// tokenizer.json, GGUF metadata, llama2.c's tok*.bin) is read into, and all that the tokenizer
// sees.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
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
  // UTF-8; U+2581 (LOWER ONE EIGHTH BLOCK) stands for a space; a byte piece is "<0x41>".
  std::string text;
  float score = 0;  // merges happen in order of score, highest first; ties go to the leftmost
  PieceType type = PieceType::normal;
};

// Where merges come from. SentencePiece, GGUF and llama2.c give scores: any two neighbours whose
// joined text is a piece may merge, the highest score first, ties leftmost. Hugging Face's
// tokenizer.json instead lists the allowed pairs in order of rank. A Llama tokenizer.json lists
// every split of every piece in score order, so both ways give the same ids; one trained by Hugging
// Face's library lists only the pairs it learned, and only the list is exact. So a reader of
// tokenizer.json fills `merges` as listed, and gives each piece the score -(rank of its first
// merge), so that the vocabulary can be written as GGUF.
struct Vocab {
  std::vector<Piece> pieces;                        // index = token id
  std::vector<std::pair<TokenId, TokenId>> merges;  // by rank; not empty: replaces merging by score
  TokenId bos = kNoToken, eos = kNoToken, unk = kNoToken, pad = kNoToken;
  std::vector<TokenId> extra_eos;  // further ids that end a turn (generation_config, <|im_end|>)
  bool add_bos = true;             // whether encode() of a whole prompt starts with bos
  bool add_eos = false;
  bool add_dummy_prefix = true;  // a space before the first word, as Llama's tokenizer has it
  // Whether text that follows a control token starts with the dummy prefix again. Hugging Face's
  // "Prepend" normalizer (every TinyLlama and Llama 2 file of their time) and llama.cpp do so;
  // files with a "Metaspace" pre-tokenizer of prepend_scheme "first" do not.
  bool prefix_after_special = true;
  bool remove_extra_whitespaces = false;
  std::string unk_surface = " \xE2\x81\x87 ";  // what <unk> decodes to (trainer_spec)
  std::string chat_template;  // Jinja source from the model's metadata; empty when there is none
};

}  // namespace tinyllama
