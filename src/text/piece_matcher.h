// Finds pieces that are taken from a text as a whole (control and user-defined ones), longest
// first, as SentencePiece's prefix matcher does. Time is linear in the text for pieces of bounded
// length.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/vocab.h"

namespace tinyllama {

class PieceMatcher {
 public:
  struct Match {
    size_t begin = 0, length = 0;  // bytes; length 0: nothing found
    TokenId id = kNoToken;
  };

  PieceMatcher() = default;
  // Of equal texts the first counts; empty ones are left out.
  explicit PieceMatcher(std::vector<std::pair<std::string, TokenId>> pieces);

  bool empty() const { return pieces_.empty(); }
  // The longest piece that starts exactly at `at`.
  Match match_at(std::string_view text, size_t at) const;
  // The first place at or after `from` where a piece starts, and the longest one there.
  Match find(std::string_view text, size_t from) const;

 private:
  std::vector<std::pair<std::string, TokenId>> pieces_;  // sorted by text
  std::array<bool, 256> starts_{};                       // by first byte
};

}  // namespace tinyllama
