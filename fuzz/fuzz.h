// What the fuzz targets share: an input either ends in an Error or gives a model, of which every
// byte is then read, so that a wrong length is a sanitizer's report.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "tensor/quant.h"

namespace tinyllama::fuzz {

inline volatile uint64_t sink = 0;

inline void touch(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (const std::byte byte : bytes) sum += static_cast<uint64_t>(byte);
  sink = sink + sum;
}

// Decodes every row of every tensor.
inline void touch(const Checkpoint& checkpoint) {
  for (const auto& [name, tensor] : checkpoint.tensors) {
    std::vector<float> row(static_cast<size_t>(tensor.view.cols));
    for (int64_t r = 0; r < tensor.view.rows; r++) {
      decode_row(tensor.view.dtype, tensor.row(r), row.data(), tensor.view.cols);
      sink = sink + (row[0] == 0 ? 1 : 0);
    }
  }
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
