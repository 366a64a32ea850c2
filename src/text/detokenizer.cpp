// Decoding, one token at a time; the whole decode is the same code run to the end, so that streamed
// text cannot differ. The rules are those of SentencePiece's Decode.
#include <fmt/format.h>

#include "text/tokenizer_impl.h"
#include "text/utf8.h"

namespace tinyllama {

namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

void append_with_spaces(std::string& to, std::string_view piece) {
  while (!piece.empty()) {
    const size_t plain = std::min(piece.find(kSpaceSymbol), piece.size());
    to.append(piece.substr(0, plain));
    piece.remove_prefix(plain);
    if (piece.empty()) break;
    to += ' ';
    piece.remove_prefix(kSpaceSymbol.size());
  }
}

}  // namespace

Detokenizer::Detokenizer(const Tokenizer& tokenizer, DecodeOptions options)
    : tokenizer_(&tokenizer), options_(options) {}

// Moves complete characters from pending_ to `to`, and a byte that can belong to none as U+FFFD.
void Detokenizer::append_bytes(std::string& to, bool final) {
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Char c = decode_utf8(rest);
    if (!c.valid && !final && is_utf8_prefix(rest)) break;
    to.append(c.valid ? rest.substr(0, static_cast<size_t>(c.length)) : kReplacementUtf8);
    rest.remove_prefix(static_cast<size_t>(c.length));
  }
  pending_ = std::string(rest);
}

std::string Detokenizer::push(TokenId id) {
  const Tokenizer::Impl& impl = *tokenizer_->impl_;
  const Vocab& vocab = impl.vocab;
  std::string text;
  const bool known = id >= 0 && id < tokenizer_->size();
  if (known && impl.byte_values[static_cast<size_t>(id)] >= 0) {
    pending_ += static_cast<char>(impl.byte_values[static_cast<size_t>(id)]);
    append_bytes(text, false);
    any_text_ = true;
    return text;
  }
  append_bytes(text, true);
  if (prefix_seen_ || any_text_) at_start_ = false;
  prefix_seen_ = false;

  const PieceType type = known ? vocab.pieces[static_cast<size_t>(id)].type : PieceType::unknown;
  if (known && options_.render_control && tokenizer_->is_control(id)) {
    return text + to_valid_utf8(vocab.pieces[static_cast<size_t>(id)].text);
  }
  if (type == PieceType::control) return text;
  std::string piece_text;
  if (type == PieceType::unknown) {
    piece_text = vocab.unk_surface;
  } else {
    std::string_view piece = vocab.pieces[static_cast<size_t>(id)].text;
    const bool strips = vocab.add_dummy_prefix || vocab.remove_extra_whitespaces;
    if (at_start_ && !options_.continues && strips && piece.starts_with(kSpaceSymbol)) {
      piece.remove_prefix(kSpaceSymbol.size());
      // With extra spaces removed, all leading ones go, not only the first.
      prefix_seen_ = !vocab.remove_extra_whitespaces;
    }
    append_with_spaces(piece_text, piece);
  }
  any_text_ = any_text_ || !piece_text.empty();
  return text + to_valid_utf8(piece_text);
}

std::string Detokenizer::flush() {
  std::string text;
  append_bytes(text, true);
  *this = Detokenizer(*tokenizer_, options_);
  return text;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, const DecodeOptions& options) const {
  Detokenizer detokenizer(*this, options);
  std::string text;
  for (const TokenId id : ids) text += detokenizer.push(id);
  return text + detokenizer.flush();
}

}  // namespace tinyllama
