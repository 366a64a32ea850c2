// Weights of a model that has not been trained: TinyLlama's recipe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/parallel.h"
#include "formats/checkpoint.h"

namespace tinyllama {

// Rows [first, first + n) of a tensor, encoded as `dtype`, one behind the other at `to`. A weight
// is a pure function of seed, tensor name and index, whatever the number of threads.
void fill_random_rows(const TensorSpec& spec, const Config& config, uint64_t seed, ThreadPool& pool,
                      int64_t first, int64_t n, DType dtype, std::byte* to);

}  // namespace tinyllama
