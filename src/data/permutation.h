// A seeded permutation of [0, n) that needs no memory: where an index goes is computed, so that any
// place in a shuffled order is found at once.
//
// It is a Feistel network (Luby and Rackoff 1988) over the smallest even number of bits that holds
// n, which permutes [0, 4^h); an image outside [0, n) is sent through again until it falls inside
// (cycle walking, Black and Rogaway 2002), on average less than four times.
#pragma once

#include <bit>
#include <cstdint>

#include "base/rng.h"

namespace tinyllama {

class Permutation {
 public:
  // Of [0, n), n >= 1; another one for each key.
  Permutation(uint64_t n, uint64_t key)
      : n_(n), key_(key), half_bits_((static_cast<unsigned>(std::bit_width(n - 1)) + 1) / 2) {}

  // The image of index < n.
  uint64_t operator()(uint64_t index) const {
    if (half_bits_ == 0) return 0;
    do index = network(index);
    while (index >= n_);
    return index;
  }

 private:
  static constexpr uint64_t kRounds = 6;

  uint64_t network(uint64_t x) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    uint64_t left = x >> half_bits_, right = x & mask;
    for (uint64_t round = 0; round < kRounds; round++) {
      const uint64_t mixed = left ^ (hash_key(key_, round, right) & mask);
      left = right;
      right = mixed;
    }
    return left << half_bits_ | right;
  }

  uint64_t n_, key_;
  unsigned half_bits_;
};

}  // namespace tinyllama
