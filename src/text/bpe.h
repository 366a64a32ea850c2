// Byte-pair merging over symbols, with everything the vocabulary implies worked out beforehand:
// which pairs merge and in what order, and between which characters no merge can ever happen.
//
// Texts here are "canonical": valid UTF-8 in which an ASCII space stands for U+2581.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/flat_map.h"
#include "text/vocab.h"

namespace tinyllama {

// A piece id, or ~code_point for a character that is no piece of its own.
using Symbol = int32_t;
inline constexpr Symbol kNoSymbol = std::numeric_limits<Symbol>::min();

// A piece as canonical text. Empty when no canonical text can spell it (invalid UTF-8, a literal
// space).
std::string canonical_piece(std::string_view piece);

class BpeModel {
 public:
  // Working memory of merge(), kept between calls.
  struct Scratch {
    std::vector<uint32_t> rank;
    std::vector<Symbol> merged;
    std::vector<uint32_t> next, previous;
    std::vector<uint64_t> heap;
    // With unused pieces: the last pair that was seen to form each (see expand_unused).
    std::vector<std::pair<Symbol, Symbol>> formed_by;
  };

  // Throws Error when a score is NaN or a merge names an id out of range.
  explicit BpeModel(const Vocab& vocab);

  // The symbol of one canonical character.
  Symbol symbol(char32_t c) const {
    if (c < 0x80) return ascii_symbols_[c];
    const Symbol* found = characters_.find(c);
    return found != nullptr ? *found : ~static_cast<Symbol>(c);
  }

  // False when no piece contains `a` directly followed by `b` (canonical): then no merge ever
  // crosses that place, and the texts on both sides are encoded independently.
  bool joined(char32_t a, char32_t b) const {
    if ((a | b) < 0x80) return (ascii_joined_[a][b >> 6] >> (b & 63) & 1) != 0;
    return joined_.find(pair_key(static_cast<Symbol>(a), static_cast<Symbol>(b))) != nullptr;
  }

  // Merges `symbols` until nothing merges any more: always the pair of lowest rank, the leftmost of
  // equals. O(n log n) time.
  void merge(std::vector<Symbol>& symbols, Scratch& scratch) const;

  // Whether some merge yields a piece of type unused. Such pieces must be taken apart again, and
  // SentencePiece does that by what it saw anywhere in the text, so the text cannot be cut into
  // words.
  bool has_unused() const { return has_unused_; }

 private:
  struct Merge {
    uint32_t rank;
    Symbol symbol;
  };
  static constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();

  static uint64_t pair_key(Symbol left, Symbol right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }

  void add_scored_merges(const Vocab& vocab, const std::vector<std::string>& texts);
  void add_listed_merges(const Vocab& vocab, const std::vector<std::string>& texts);
  void add_joints(std::string_view text);
  void find_pair(Symbol left, Symbol right, size_t at, Scratch& scratch) const;
  void merge_short(std::vector<Symbol>& symbols, Scratch& scratch) const;
  void merge_long(std::vector<Symbol>& symbols, Scratch& scratch) const;
  void expand_unused(std::vector<Symbol>& symbols, const Scratch& scratch) const;

  std::array<Symbol, 128> ascii_symbols_{};
  FlatMap<Symbol> characters_;                               // beyond ASCII, by code point
  std::array<std::array<uint64_t, 2>, 128> ascii_joined_{};  // [a] is a bit set of b
  FlatMap<char> joined_;                                     // beyond ASCII
  FlatMap<Merge> merges_;                                    // by pair_key
  std::vector<bool> unused_;                                 // by piece id
  bool has_unused_ = false;
};

}  // namespace tinyllama
