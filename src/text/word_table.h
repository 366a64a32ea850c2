// Short words and the ids they encode to, found with one hash and one cache line: a fixed table of
// the words that are one piece, and a bounded cache of others met before.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "text/vocab.h"

namespace tinyllama {

// A word of 1 to 32 bytes, padded with zeros; with its length, so that trailing NULs count.
struct WordKey {
  static constexpr size_t kMaxBytes = 32;
  static constexpr size_t kPadding = 32;  // readable bytes that must follow the text

  std::array<uint64_t, 4> words{};
  uint64_t hash = 0;

  WordKey() = default;
  // Reads whole words, so up to kPadding bytes beyond the end.
  WordKey(const char* text, size_t length) {
    uint64_t mix = length;
    for (size_t i = 0; 8 * i < length; ++i) {
      std::memcpy(&words[i], text + 8 * i, 8);
      const size_t rest = length - 8 * i;
      if (rest < 8) words[i] &= (uint64_t{1} << 8 * rest) - 1;
      mix = (mix ^ words[i]) * 0x9E3779B97F4A7C15ull;
      mix ^= mix >> 32;
    }
    hash = mix * 0xD6E8FEB86659FD93ull;
  }
};
static_assert(std::endian::native == std::endian::little,
              "WordKey masks the last word's high bytes");

// Words that encode to a single id. Built once, then only read.
class WordTable {
 public:
  explicit WordTable(size_t expected)
      : slots_(std::bit_ceil(2 * expected + 8)), shift_(64 - std::countr_zero(slots_.size())) {}

  void insert(const WordKey& key, size_t length, TokenId id) {
    slots_[slot_of(key, static_cast<uint32_t>(length))] = {key.words, id,
                                                           static_cast<uint32_t>(length)};
  }

  // kNoToken when absent.
  TokenId find(const WordKey& key, size_t length) const {
    return slots_[slot_of(key, static_cast<uint32_t>(length))].id;
  }

 private:
  struct Slot {
    std::array<uint64_t, 4> words{};
    TokenId id = kNoToken;
    uint32_t length = 0;  // 0: empty
  };

  size_t slot_of(const WordKey& key, uint32_t length) const {
    auto i = static_cast<size_t>(key.hash >> shift_);
    while (slots_[i].length != 0 && (slots_[i].length != length || slots_[i].words != key.words)) {
      i = (i + 1) & (slots_.size() - 1);
    }
    return i;
  }

  std::vector<Slot> slots_;
  int shift_;
};

// Words and their ids, each in the one place that its hash gives: a newcomer takes the old one's
// place.
class WordCache {
 public:
  static constexpr size_t kMaxIds = 7;

  struct alignas(64) Entry {
    std::array<uint64_t, 4> words{};
    std::array<TokenId, kMaxIds> ids{};
    uint8_t length = 0;  // of the word in bytes; 0: empty
    uint8_t n_ids = 0;
  };

  void clear() {
    entries_.clear();
    misses_ = 0;
  }

  // Null when absent.
  const Entry* find(const WordKey& key, size_t length) const {
    if (entries_.empty()) return nullptr;
    const Entry& entry = entries_[slot_of(key)];
    return entry.length == length && entry.words == key.words ? &entry : nullptr;
  }

  void insert(const WordKey& key, size_t length, const TokenId* ids, size_t n_ids) {
    if (n_ids > kMaxIds) return;
    if (entries_.empty()) {
      if (++misses_ < kMissesBeforeUse) return;
      entries_.resize(kEntries);
    }
    Entry& entry = entries_[slot_of(key)];
    entry.words = key.words;
    std::copy(ids, ids + n_ids, entry.ids.begin());
    entry.length = static_cast<uint8_t>(length);
    entry.n_ids = static_cast<uint8_t>(n_ids);
  }

 private:
  static constexpr size_t kEntries = size_t{1} << 14;  // 1 MiB
  static constexpr size_t kMissesBeforeUse = 256;      // a short text is not worth the memory

  static size_t slot_of(const WordKey& key) {
    return static_cast<size_t>(key.hash >> (64 - std::countr_zero(kEntries)));
  }

  std::vector<Entry> entries_;
  size_t misses_ = 0;
};

}  // namespace tinyllama
