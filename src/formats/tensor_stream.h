// Tensors on their way from one file to another: rows are reordered, decoded and encoded a few
// megabytes at a time.
#pragma once

#include <functional>
#include <span>

#include "base/parallel.h"
#include "formats/checkpoint.h"

namespace tinyllama {

// Fills rows [first, first + n) of the output at `to`.
using FillChunk = std::function<void(int64_t first, int64_t n, std::byte* to)>;

// Makes `rows` rows of `row_bytes` bytes, as many at a time as fit into a few megabytes, and gives
// them to `sink` in order.
void stream_rows(int64_t rows, size_t row_bytes, const FillChunk& fill,
                 const std::function<void(std::span<const std::byte>)>& sink);

enum class RowOrder { hugging_face, interleaved };

// Rows [first, first + n) of `tensor` as `dtype`, in the given order, encoded on all threads. Rows
// that have the type already are copied bit for bit. `spec.rotary_dim` says whether order matters
// at all.
void convert_rows(const NamedTensor& tensor, const TensorSpec& spec, DType dtype, RowOrder order,
                  ThreadPool& pool, int64_t first, int64_t n, std::byte* to);

// Tells the system that a tensor's pages in a mapped file are not needed any more.
void drop_pages(const Checkpoint& checkpoint, const TensorView& view);

// Throws Error unless rows of `spec` can be stored as `dtype`.
void check_block(const TensorSpec& spec, DType dtype);

}  // namespace tinyllama
