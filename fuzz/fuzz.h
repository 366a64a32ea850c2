// The same for those that read models.
#pragma once

#include <vector>

#include "formats/checkpoint.h"
#include "fuzz_bytes.h"
#include "tensor/quant.h"

namespace tinyllama::fuzz {

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

}  // namespace tinyllama::fuzz
