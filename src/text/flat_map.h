// An open-addressing hash map from 64-bit keys, built once and then only read: the tokenizer's
// inner loops look up pairs of symbols, characters and pairs of characters in it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tinyllama {

template <class Value>
class FlatMap {
 public:
  explicit FlatMap(size_t expected = 0) { rehash(expected); }

  // Any key but ~0. The first value of a key stays.
  void insert(uint64_t key, Value value) {
    if (2 * (size_ + 1) > slots_.size()) rehash(2 * size_ + 2);
    Slot& slot = slots_[slot_of(key)];
    if (slot.key == key) return;
    slot = {key, value};
    ++size_;
  }

  // Null when absent.
  const Value* find(uint64_t key) const {
    const Slot& slot = slots_[slot_of(key)];
    return slot.key == key ? &slot.value : nullptr;
  }

  size_t size() const { return size_; }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  struct Slot {
    uint64_t key = kEmpty;
    Value value{};
  };

  // The slot that holds `key`, or the empty one where it belongs.
  size_t slot_of(uint64_t key) const {
    const uint64_t product = (key ^ key >> 32) * 0x9E3779B97F4A7C15ull;
    size_t i = static_cast<size_t>(product >> shift_);
    while (slots_[i].key != key && slots_[i].key != kEmpty) i = (i + 1) & (slots_.size() - 1);
    return i;
  }

  void rehash(size_t expected) {
    const size_t n_slots = std::bit_ceil(2 * expected + 8);
    std::vector<Slot> old(n_slots);
    old.swap(slots_);
    shift_ = 64 - std::countr_zero(n_slots);
    for (const Slot& slot : old) {
      if (slot.key != kEmpty) slots_[slot_of(slot.key)] = slot;
    }
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
  int shift_ = 0;
};

}  // namespace tinyllama
