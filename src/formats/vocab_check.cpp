// Checks that hold for vocabularies of every format.
#include "formats/vocab_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace tinyllama {
namespace {

// Length of the well-formed UTF-8 sequence that `text` starts with, or 0 (Unicode standard, table
// 3-7).
size_t utf8_sequence(std::string_view text) {
  const auto at = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = at(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  const unsigned low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const unsigned high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  if (at(1) < low || at(1) > high) return 0;
  for (size_t i = 2; i < length; i++) {
    if (at(i) < 0x80 || at(i) > 0xbf) return 0;
  }
  return length;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

void check_piece(const Piece& piece, size_t id, std::string_view where) {
  const bool plain = piece.type == PieceType::normal || piece.type == PieceType::user_defined;
  const size_t longest = plain ? kMaxPlainPiece : kMaxPiece;
  if (piece.text.size() > longest)
    fail(fmt::format("[load] {}: piece {} must be at most {} bytes long, got {}", where, id,
                     longest, piece.text.size()));
  if (!is_utf8(piece.text)) fail(fmt::format("[load] {}: piece {} is not valid UTF-8", where, id));
  if (!std::isfinite(piece.score))
    fail(fmt::format("[load] {}: piece {} has a score that is not finite", where, id));
  if (piece.type == PieceType::byte && byte_of_piece(piece.text) < 0)
    fail(fmt::format("[load] {}: byte piece {} must look like <0x41>, got \"{}\"", where, id,
                     piece.text.substr(0, 32)));
}

}  // namespace

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_sequence(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

int byte_of_piece(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const int high = hex_digit(text[3]), low = hex_digit(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

void finish_vocab(Vocab& vocab, std::string_view where) {
  if (vocab.pieces.empty() || vocab.pieces.size() > kMaxPieces)
    fail(fmt::format("[load] {}: want 1 to {} vocabulary pieces, got {}", where, kMaxPieces,
                     vocab.pieces.size()));
  for (size_t id = 0; id < vocab.pieces.size(); id++) {
    Piece& piece = vocab.pieces[id];
    if (piece.text.empty()) piece.type = PieceType::unused;
    check_piece(piece, id, where);
  }
  const auto index = piece_index(vocab);
  for (size_t id = 0; id < vocab.pieces.size(); id++) {
    const std::string& text = vocab.pieces[id].text;
    const auto first = index.find(text);
    if (first != index.end() && first->second != static_cast<TokenId>(id))
      fail(fmt::format("[load] {}: pieces {} and {} are both \"{}\"", where, first->second, id,
                       text.substr(0, 32)));
  }
  const auto check_id = [&](TokenId id, const char* name) {
    if (id < kNoToken || id >= static_cast<TokenId>(vocab.pieces.size()))
      fail(fmt::format("[load] {}: {} must be a token id below {}, got {}", where, name,
                       vocab.pieces.size(), id));
  };
  check_id(vocab.bos, "bos_token_id");
  check_id(vocab.eos, "eos_token_id");
  check_id(vocab.unk, "unk_token_id");
  check_id(vocab.pad, "pad_token_id");
  for (const TokenId id : vocab.extra_eos) check_id(id, "eos_token_id");
  const auto turn_end = index.find("<|im_end|>");
  if (turn_end != index.end() && turn_end->second != vocab.eos &&
      std::find(vocab.extra_eos.begin(), vocab.extra_eos.end(), turn_end->second) ==
          vocab.extra_eos.end()) {
    vocab.extra_eos.push_back(turn_end->second);
  }
}

TokenId find_piece(const Vocab& vocab, std::string_view text) {
  for (size_t id = 0; id < vocab.pieces.size(); id++) {
    if (vocab.pieces[id].text == text) return static_cast<TokenId>(id);
  }
  return kNoToken;
}

std::unordered_map<std::string_view, TokenId> piece_index(const Vocab& vocab) {
  std::unordered_map<std::string_view, TokenId> index;
  index.reserve(vocab.pieces.size());
  for (size_t id = 0; id < vocab.pieces.size(); id++) {
    if (!vocab.pieces[id].text.empty())
      index.emplace(vocab.pieces[id].text, static_cast<TokenId>(id));
  }
  return index;
}

std::string unused_text(const std::unordered_map<std::string_view, TokenId>& index, size_t id) {
  std::string text = fmt::format("[PAD{}]", id);
  while (index.contains(text)) text = fmt::format("[{}]", text);
  return text;
}

void fit_vocab(Vocab& vocab, int64_t vocab_size, std::vector<std::string>& notes) {
  const auto size = static_cast<size_t>(vocab_size);
  if (vocab.pieces.size() > size) {
    notes.push_back(fmt::format(
        "the tokenizer has {} pieces but the model {} embeddings: ids from {} on are dropped",
        vocab.pieces.size(), size, size));
    vocab.pieces.resize(size);
    const auto drop = [size](TokenId& id) {
      if (id >= static_cast<TokenId>(size)) id = kNoToken;
    };
    drop(vocab.bos), drop(vocab.eos), drop(vocab.unk), drop(vocab.pad);
    std::erase_if(vocab.extra_eos, [size](TokenId id) { return id >= static_cast<TokenId>(size); });
  } else if (vocab.pieces.size() < size) {
    notes.push_back(
        fmt::format("the tokenizer has {} pieces but the model {} embeddings: ids from {} on are "
                    "unused",
                    vocab.pieces.size(), size, vocab.pieces.size()));
    vocab.pieces.reserve(size);  // so that the index stays valid
    const auto index = piece_index(vocab);
    while (vocab.pieces.size() < size) {
      vocab.pieces.push_back({unused_text(index, vocab.pieces.size()), 0.0f, PieceType::unused});
    }
  }
}

}  // namespace tinyllama
