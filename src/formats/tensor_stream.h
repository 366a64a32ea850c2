// Tensors on their way from one file to another: rows are reordered, decoded and encoded a few
// megabytes at a time.
#pragma once

#include <functional>
#include <span>

#include "base/parallel.h"
#include "formats/checkpoint.h"

namespace tinyllama {

enum class RowOrder { hugging_face, interleaved };

// Gives `sink` the bytes of `tensor` as `dtype`, row after row. `rotary_dim` (TensorSpec's) says
// whether the order of rows matters at all. Rows that already have the type are copied bit for bit.
void stream_tensor(const NamedTensor& tensor, int64_t rotary_dim, DType dtype, RowOrder order,
                   ThreadPool& pool, const std::function<void(std::span<const std::byte>)>& sink);

// Tells the system that a tensor's pages in a mapped file are not needed any more.
void drop_pages(const Checkpoint& checkpoint, const TensorView& view);

// Throws Error unless rows of `spec` can be stored as `dtype`.
void check_block(const TensorSpec& spec, DType dtype);

}  // namespace tinyllama
