// Counter-based random numbers: a value is a pure function of its key, so that it can be drawn in
// any order, on any thread, again after a restart.
#pragma once

#include <cstdint>
#include <string_view>

namespace tinyllama {

// The SplitMix64 finalizer (Steele, Lea, Flood 2014) of x + the golden gamma.
constexpr uint64_t splitmix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// FNV-1a, 64 bits.
constexpr uint64_t fnv1a64(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash;
}

// A key for the stream (a, b, ...): chained finalizers, order matters.
template <class... Rest>
constexpr uint64_t hash_key(uint64_t first, Rest... rest) {
  uint64_t hash = splitmix64(first);
  ((hash = splitmix64(hash ^ static_cast<uint64_t>(rest))), ...);
  return hash;
}

// Uniform in (0, 1), never an end: the top 52 bits, centred, so that every value is exact.
constexpr double uniform_open(uint64_t bits) {
  return (static_cast<double>(bits >> 12) + 0.5) * 0x1.0p-52;
}
static_assert(uniform_open(~uint64_t{0}) < 1.0 && uniform_open(0) > 0.0);

}  // namespace tinyllama
