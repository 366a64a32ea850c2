// What a Tokenizer consists of; shared by tokenizer.cpp (text to ids) and detokenizer.cpp (ids to
// text).
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/bpe.h"
#include "text/piece_matcher.h"
#include "text/tokenizer.h"
#include "text/word_table.h"

namespace tinyllama {

struct EncodeScratch::State {
  uint64_t fingerprint = 0;  // of the vocabulary whose words the cache holds
  WordCache cache;
  std::string
      canonical;  // the text being encoded; only grows, with WordKey::kPadding bytes to spare
  std::vector<Symbol> symbols;
  std::vector<TokenId> word_ids;
  BpeModel::Scratch merging;
};

struct Tokenizer::Impl {
  explicit Impl(Vocab from);

  bool is_marker(TokenId id) const;  // a user_defined piece that marks turns

  // Encodes text in which no control token is looked for, and appends. `prefix`: starts with a
  // space.
  void encode_plain(std::string_view text, bool prefix, bool untrusted, EncodeScratch::State& state,
                    std::vector<TokenId>& out) const;

  Vocab vocab;
  BpeModel bpe;
  std::unordered_map<std::string_view, TokenId> ids;  // by piece, as stored; the first of equals
  std::array<TokenId, 256> byte_ids{};                // kNoToken where there is no byte piece
  std::vector<int16_t> byte_values;                   // by id; -1 when not a byte piece
  PieceMatcher specials;                   // control, unknown and marker pieces, in the user's text
  PieceMatcher symbols;                    // user_defined pieces, in canonical text
  PieceMatcher harmless;                   // the same less the markers
  PieceMatcher unnormalized;               // user_defined pieces in the user's text
  WordTable words{0};                      // words that are one piece
  std::array<TokenId, 128> ascii_words{};  // the same for one ASCII character, else kNoToken
  uint64_t fingerprint = 0;

 private:
  std::string_view canonicalize(std::string_view text, bool prefix, EncodeScratch::State&) const;
  std::string squeeze_spaces(std::string_view text) const;
  void encode_canonical(std::string_view text, size_t first, EncodeScratch::State& state,
                        std::vector<TokenId>& out) const;
  void encode_word(const char* text, size_t length, size_t first, EncodeScratch::State& state,
                   std::vector<TokenId>& out) const;
  void encode_whole(std::string_view text, const PieceMatcher& matcher, size_t first,
                    EncodeScratch::State& state, std::vector<TokenId>& out) const;
  void split(std::string_view text, std::vector<Symbol>& to) const;
  void emit(Symbol symbol, size_t first, std::vector<TokenId>& out) const;
  void append_word(const TokenId* word_ids, size_t n, size_t first,
                   std::vector<TokenId>& out) const;
  void fill_words();
};

}  // namespace tinyllama
