// A sorted list walked like a trie: each further byte narrows the range of pieces that still agree.
#include "text/piece_matcher.h"

#include <algorithm>

namespace tinyllama {

PieceMatcher::PieceMatcher(std::vector<std::pair<std::string, TokenId>> pieces)
    : pieces_(std::move(pieces)) {
  std::erase_if(pieces_, [](const auto& piece) { return piece.first.empty(); });
  std::stable_sort(pieces_.begin(), pieces_.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  const auto same_text = [](const auto& a, const auto& b) { return a.first == b.first; };
  pieces_.erase(std::unique(pieces_.begin(), pieces_.end(), same_text), pieces_.end());
  for (const auto& piece : pieces_) starts_[static_cast<unsigned char>(piece.first[0])] = true;
}

PieceMatcher::Match PieceMatcher::match_at(std::string_view text, size_t at) const {
  Match match;
  if (at >= text.size() || !starts_[static_cast<unsigned char>(text[at])]) return match;
  auto low = pieces_.begin(), high = pieces_.end();
  for (size_t depth = 0; at + depth < text.size(); ++depth) {
    const auto byte = static_cast<unsigned char>(text[at + depth]);
    // Within [low, high) the first `depth` bytes agree; a piece that ends here sorts first.
    const auto below = [depth](const auto& piece, unsigned char b) {
      return piece.first.size() <= depth || static_cast<unsigned char>(piece.first[depth]) < b;
    };
    const auto above = [depth](unsigned char b, const auto& piece) {
      return piece.first.size() > depth && b < static_cast<unsigned char>(piece.first[depth]);
    };
    low = std::lower_bound(low, high, byte, below);
    high = std::upper_bound(low, high, byte, above);
    if (low == high) break;
    if (low->first.size() == depth + 1) match = {at, depth + 1, low->second};
  }
  return match;
}

PieceMatcher::Match PieceMatcher::find(std::string_view text, size_t from) const {
  if (empty()) return {};
  for (size_t at = from; at < text.size(); ++at) {
    if (!starts_[static_cast<unsigned char>(text[at])]) continue;
    if (const Match match = match_at(text, at); match.length > 0) return match;
  }
  return {};
}

}  // namespace tinyllama
