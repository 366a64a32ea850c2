// Reads little-endian values from bytes that nobody has checked yet. Every read states how much it
// wants and throws Error, naming the file, the offset and the thing wanted, when less is left.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"

namespace tinyllama {

static_assert(std::endian::native == std::endian::little, "file formats are read in place");

// a * b, or false when it does not fit.
inline bool multiply_fits(uint64_t a, uint64_t b, uint64_t& product) {
  if (a != 0 && b > UINT64_MAX / a) return false;
  product = a * b;
  return true;
}

// Rounds up to a power of two, or false when it does not fit.
inline bool round_up_fits(uint64_t value, uint64_t alignment, uint64_t& rounded) {
  if (value > UINT64_MAX - (alignment - 1)) return false;
  rounded = (value + alignment - 1) & ~(alignment - 1);
  return true;
}

inline std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

class ByteReader {
 public:
  // `where` (a path) starts every message; it must outlive the reader.
  ByteReader(std::span<const std::byte> bytes, std::string_view where)
      : bytes_(bytes), where_(where) {}

  size_t position() const { return position_; }
  size_t left() const { return bytes_.size() - position_; }
  bool done() const { return left() == 0; }
  std::string_view where() const { return where_; }

  // The next `n` bytes, in place.
  std::span<const std::byte> take(uint64_t n, std::string_view what) {
    if (n > left()) refuse(n, what);
    const auto part = bytes_.subspan(position_, static_cast<size_t>(n));
    position_ += static_cast<size_t>(n);
    return part;
  }

  template <class T>
  requires std::is_trivially_copyable_v<T> T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

 private:
  [[noreturn]] void refuse(uint64_t n, std::string_view what) const {
    fail("[load] " + std::string(where_) + ": want " + std::to_string(n) + " bytes of " +
         std::string(what) + " at offset " + std::to_string(position_) + ", got " +
         std::to_string(left()) + ": the file is truncated or damaged");
  }

  std::span<const std::byte> bytes_;
  std::string_view where_;
  size_t position_ = 0;
};

}  // namespace tinyllama
