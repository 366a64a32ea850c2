// What every vocabulary must satisfy, whichever file it came from, and the small questions that
// readers and writers of tokenizer files ask of it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/vocab.h"

namespace tinyllama {

inline constexpr size_t kMaxPieces = size_t{1} << 20;

bool is_utf8(std::string_view text);
// "<0x41>" -> 0x41; -1 for anything else.
int byte_of_piece(std::string_view text);

// Plain pieces take part in merges, whose cost grows with the square of a piece's length.
inline constexpr size_t kMaxPlainPiece =
    256;  // bytes; SentencePiece's default limit is 16 characters
inline constexpr size_t kMaxPiece = 4096;

// Throws Error, naming `where`, unless: 1 to kMaxPieces pieces, each valid UTF-8 within the
// bounds above, finite scores, no text twice, byte pieces well formed, special ids inside the
// vocabulary. Pieces without text become unused, and an <|im_end|> that is not eos ends a turn too.
void finish_vocab(Vocab& vocab, std::string_view where);

// The id of the piece `text`, or kNoToken. Linear; for a handful of look-ups.
TokenId find_piece(const Vocab& vocab, std::string_view text);

// Piece text -> id; the views point into `vocab`.
std::unordered_map<std::string_view, TokenId> piece_index(const Vocab& vocab);

// A text for the piece `id` that has none of its own: "[PAD32001]", or more brackets when that is
// taken.
std::string unused_text(const std::unordered_map<std::string_view, TokenId>& index, size_t id);

// Makes the vocabulary as long as the embedding table: missing ids become unused pieces
// ("[PAD32001]"), ids beyond it are dropped since the model cannot see them. Each adds a line to
// `notes`.
void fit_vocab(Vocab& vocab, int64_t vocab_size, std::vector<std::string>& notes);

}  // namespace tinyllama
