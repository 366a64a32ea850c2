// Building the merge table from scores or from a list of merges, and the merging itself: a scan for
// the minimum over short runs of symbols, a heap over long ones. Both follow the same order
// exactly.
#include "text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "text/utf8.h"

namespace tinyllama {

namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581
constexpr size_t kShort = 48;                              // symbols that a scan still handles best

// Pieces that come into being by merging. User-defined ones are cut out of the text before.
bool takes_part(const Piece& piece) {
  return piece.type == PieceType::normal || piece.type == PieceType::unused;
}

// The starts of all characters of valid UTF-8 but the first.
std::vector<size_t> inner_boundaries(std::string_view text) {
  std::vector<size_t> starts;
  for (size_t i = 1; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) starts.push_back(i);
  }
  return starts;
}

}  // namespace

std::string canonical_piece(std::string_view piece) {
  std::string text;
  if (!is_valid_utf8(piece) || piece.find(' ') != std::string_view::npos) return text;
  text.reserve(piece.size());
  while (!piece.empty()) {
    if (piece.starts_with(kSpaceSymbol)) {
      text += ' ';
      piece.remove_prefix(kSpaceSymbol.size());
    } else {
      text += piece[0];
      piece.remove_prefix(1);
    }
  }
  return text;
}

BpeModel::BpeModel(const Vocab& vocab) {
  std::iota(ascii_symbols_.begin(), ascii_symbols_.end(), 0);
  for (Symbol& symbol : ascii_symbols_) symbol = ~symbol;
  ascii_symbols_[' '] = ~Symbol{0x2581};

  std::vector<std::string> texts(vocab.pieces.size());  // canonical; empty when it takes no part
  unused_.resize(vocab.pieces.size());
  for (size_t i = 0; i < vocab.pieces.size(); ++i) {
    const Piece& piece = vocab.pieces[i];
    if (std::isnan(piece.score)) {
      fail(fmt::format("[tokenizer] piece {} has no number as its score", i));
    }
    unused_[i] = piece.type == PieceType::unused;
    if (!takes_part(piece)) continue;
    texts[i] = canonical_piece(piece.text);
    if (texts[i].empty()) continue;
    const Utf8Char first = decode_utf8(texts[i]);
    if (static_cast<size_t>(first.length) < texts[i].size()) continue;
    const auto id = static_cast<Symbol>(i);
    if (first.code >= 0x80) {
      characters_.insert(first.code, id);
    } else if (ascii_symbols_[first.code] < 0) {
      ascii_symbols_[first.code] = id;
    }
  }
  if (vocab.merges.empty()) {
    add_scored_merges(vocab, texts);
  } else {
    add_listed_merges(vocab, texts);
  }
}

void BpeModel::add_scored_merges(const Vocab& vocab, const std::vector<std::string>& texts) {
  std::unordered_map<std::string_view, Symbol> ids;
  ids.reserve(texts.size());
  std::vector<size_t> by_score;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].empty()) continue;
    if (ids.emplace(texts[i], static_cast<Symbol>(i)).second) by_score.push_back(i);
  }
  std::stable_sort(by_score.begin(), by_score.end(), [&](size_t a, size_t b) {
    return vocab.pieces[a].score > vocab.pieces[b].score;
  });

  const auto symbol_of = [&](std::string_view part) -> std::optional<Symbol> {
    if (const auto it = ids.find(part); it != ids.end()) return it->second;
    const Utf8Char c = decode_utf8(part);
    if (static_cast<size_t>(c.length) < part.size()) return std::nullopt;
    return symbol(c.code);
  };
  uint32_t rank = 0;
  for (size_t i = 0; i < by_score.size(); ++i) {
    const size_t id = by_score[i];
    // Pieces of equal score have one rank: between them, only the place in the text decides.
    if (i > 0 && vocab.pieces[id].score != vocab.pieces[by_score[i - 1]].score) ++rank;
    const std::string_view text = texts[id];
    for (const size_t cut : inner_boundaries(text)) {
      const auto left = symbol_of(text.substr(0, cut));
      if (!left) continue;
      const auto right = symbol_of(text.substr(cut));
      if (!right) continue;
      merges_.insert(pair_key(*left, *right), {rank, static_cast<Symbol>(id)});
      has_unused_ = has_unused_ || unused_[id];
    }
    add_joints(text);
  }
}

void BpeModel::add_listed_merges(const Vocab& vocab, const std::vector<std::string>& texts) {
  std::unordered_map<std::string_view, Symbol> ids;
  ids.reserve(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!texts[i].empty()) ids.emplace(texts[i], static_cast<Symbol>(i));
  }
  const auto text_of = [&](TokenId id) -> const std::string& {
    if (id < 0 || static_cast<size_t>(id) >= texts.size()) {
      fail(fmt::format("[tokenizer] a merge names id {}, the vocabulary has {}", id, texts.size()));
    }
    return texts[static_cast<size_t>(id)];
  };
  uint32_t rank = 0;
  for (const auto& [left, right] : vocab.merges) {
    const std::string text = text_of(left) + text_of(right);
    if (const auto it = ids.find(text); it != ids.end()) {
      merges_.insert(pair_key(left, right), {rank, it->second});
      has_unused_ = has_unused_ || unused_[static_cast<size_t>(it->second)];
      add_joints(text);
    }
    ++rank;
  }
}

void BpeModel::add_joints(std::string_view text) {
  if (text.empty()) return;
  Utf8Char last = decode_utf8(text);
  for (text.remove_prefix(static_cast<size_t>(last.length)); !text.empty();) {
    const Utf8Char c = decode_utf8(text);
    if ((last.code | c.code) < 0x80) {
      ascii_joined_[last.code][c.code >> 6] |= uint64_t{1} << (c.code & 63);
    } else {
      joined_.insert(pair_key(static_cast<Symbol>(last.code), static_cast<Symbol>(c.code)), 1);
    }
    text.remove_prefix(static_cast<size_t>(c.length));
    last = c;
  }
}

void BpeModel::merge(std::vector<Symbol>& symbols, Scratch& scratch) const {
  if (symbols.size() >= kNoRank) {
    fail(fmt::format("[tokenizer] a run of {} characters is too long", symbols.size()));
  }
  if (has_unused_) scratch.formed_by.assign(unused_.size(), {kNoSymbol, kNoSymbol});
  if (symbols.size() <= kShort) {
    merge_short(symbols, scratch);
  } else {
    merge_long(symbols, scratch);
  }
  if (has_unused_) expand_unused(symbols, scratch);
}

// Notes at index `at` what the pair (left, right) would become.
void BpeModel::find_pair(Symbol left, Symbol right, size_t at, Scratch& scratch) const {
  const Merge* found = merges_.find(pair_key(left, right));
  scratch.rank[at] = found != nullptr ? found->rank : kNoRank;
  if (found == nullptr) return;
  scratch.merged[at] = found->symbol;
  if (has_unused_ && unused_[static_cast<size_t>(found->symbol)]) {
    scratch.formed_by[static_cast<size_t>(found->symbol)] = {left, right};
  }
}

void BpeModel::merge_short(std::vector<Symbol>& symbols, Scratch& scratch) const {
  size_t n = symbols.size();
  if (n < 2) return;
  scratch.rank.resize(std::max(scratch.rank.size(), kShort));
  scratch.merged.resize(std::max(scratch.merged.size(), kShort));
  uint32_t* rank = scratch.rank.data();
  Symbol* merged = scratch.merged.data();
  for (size_t i = 0; i + 1 < n; ++i) find_pair(symbols[i], symbols[i + 1], i, scratch);
  while (n > 1) {
    const auto best = static_cast<size_t>(std::min_element(rank, rank + n - 1) - rank);
    if (rank[best] == kNoRank) break;
    symbols[best] = merged[best];
    // Symbol best + 1 is gone, and with it the pair that started there.
    std::copy(symbols.data() + best + 2, symbols.data() + n, symbols.data() + best + 1);
    std::copy(rank + best + 1, rank + n - 1, rank + best);
    std::copy(merged + best + 1, merged + n - 1, merged + best);
    --n;
    if (best > 0) find_pair(symbols[best - 1], symbols[best], best - 1, scratch);
    if (best + 1 < n) find_pair(symbols[best], symbols[best + 1], best, scratch);
  }
  symbols.resize(n);
}

// A heap of (rank, index of the left symbol). An entry is valid when its rank is still the one of
// the pair that starts there; otherwise one of its symbols has changed since.
void BpeModel::merge_long(std::vector<Symbol>& symbols, Scratch& scratch) const {
  const auto n = static_cast<uint32_t>(symbols.size());
  auto &rank = scratch.rank, &next = scratch.next, &previous = scratch.previous;
  auto& merged = scratch.merged;
  auto& heap = scratch.heap;
  rank.resize(n);
  merged.resize(n);
  next.resize(n);
  previous.resize(n);
  heap.clear();
  for (uint32_t i = 0; i < n; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;
    rank[i] = kNoRank;
    if (i + 1 < n) find_pair(symbols[i], symbols[i + 1], i, scratch);
    if (rank[i] != kNoRank) heap.push_back(uint64_t{rank[i]} << 32 | i);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());

  const auto update = [&](uint32_t left) {
    find_pair(symbols[left], symbols[next[left]], left, scratch);
    if (rank[left] == kNoRank) return;
    heap.push_back(uint64_t{rank[left]} << 32 | left);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t top = heap.back();
    heap.pop_back();
    const auto left = static_cast<uint32_t>(top);
    if (rank[left] != top >> 32) continue;
    const uint32_t right = next[left];
    symbols[left] = merged[left];
    next[left] = next[right];
    rank[left] = rank[right] = kNoRank;
    if (next[right] < n) previous[next[right]] = left;
    if (left > 0) update(previous[left]);
    if (next[left] < n) update(left);
  }

  size_t kept = 0;
  for (uint32_t i = 0; i < n; i = next[i]) symbols[kept++] = symbols[i];
  symbols.resize(kept);
}

// Replaces each unused piece by the two symbols last seen to form it, again and again. The parts
// are shorter than the whole, so this ends.
void BpeModel::expand_unused(std::vector<Symbol>& symbols, const Scratch& scratch) const {
  std::vector<Symbol> expanded, stack;
  for (const Symbol symbol : symbols) {
    stack.push_back(symbol);
    while (!stack.empty()) {
      const Symbol top = stack.back();
      stack.pop_back();
      const bool is_unused = top >= 0 && unused_[static_cast<size_t>(top)];
      const auto parts =
          is_unused ? scratch.formed_by[static_cast<size_t>(top)] : std::pair{kNoSymbol, kNoSymbol};
      if (parts.first == kNoSymbol) {  // not formed by merging
        expanded.push_back(top);
      } else {
        stack.push_back(parts.second);
        stack.push_back(parts.first);
      }
    }
  }
  symbols = std::move(expanded);
}

}  // namespace tinyllama
