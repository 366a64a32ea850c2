// What all fuzz targets share: an input either ends in an Error or gives something, of which every
// byte is then read, so that a wrong length is a sanitizer's report.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"

namespace tinyllama::fuzz {

inline volatile uint64_t sink = 0;

inline void touch(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (const std::byte byte : bytes) sum += static_cast<uint64_t>(byte);
  sink = sink + sum;
}

// Runs `read` over the input; an Error is a fine answer, anything else ends the run.
template <class Read>
int one_input(const uint8_t* data, size_t size, const Read& read) {
  try {
    read(std::as_bytes(std::span(data, size)));
  } catch (const Error&) {
    return 0;
  }
  return 0;
}

}  // namespace tinyllama::fuzz
