// One chunk of rows is encoded on all threads, written, and its buffer used again.
#include "formats/tensor_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

constexpr size_t kChunkBytes = size_t{8} << 20;

// The row of Hugging Face's order that stands at row `r` of the interleaved order: the inverse of
// interleaved_row().
int64_t deinterleaved_row(int64_t r, int64_t head_dim) {
  const int64_t in_head = r % head_dim;
  return r - in_head + in_head / 2 + (in_head % 2) * (head_dim / 2);
}

void convert_row(const std::byte* from, DType from_type, std::byte* to, DType to_type, int64_t cols,
                 std::vector<float>& scratch) {
  if (from_type == to_type) {
    std::memcpy(to, from, row_bytes(to_type, cols));
    return;
  }
  decode_row(from_type, from, scratch.data(), cols);
  encode_row(to_type, scratch.data(), to, cols);
}

}  // namespace

void stream_rows(int64_t rows, size_t row_bytes, const FillChunk& fill,
                 const std::function<void(std::span<const std::byte>)>& sink) {
  const auto fitting = static_cast<int64_t>(kChunkBytes / std::max<size_t>(1, row_bytes));
  const int64_t at_once = std::clamp<int64_t>(fitting, 1, std::max<int64_t>(1, rows));
  std::vector<std::byte> chunk(row_bytes * static_cast<size_t>(at_once));
  for (int64_t first = 0; first < rows; first += at_once) {
    const int64_t n = std::min(at_once, rows - first);
    fill(first, n, chunk.data());
    sink(std::span(chunk).first(row_bytes * static_cast<size_t>(n)));
  }
}

void convert_rows(const NamedTensor& tensor, const TensorSpec& spec, DType dtype, RowOrder order,
                  ThreadPool& pool, int64_t first, int64_t n, std::byte* to) {
  const bool interleave = order == RowOrder::interleaved && spec.rotary_dim != 0;
  const size_t stride = row_bytes(dtype, spec.cols);
  pool.for_ranges(n, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(spec.cols));
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = interleave ? deinterleaved_row(first + i, spec.rotary_dim) : first + i;
      convert_row(tensor.row(row), tensor.view.dtype, to + static_cast<size_t>(i) * stride, dtype,
                  spec.cols, scratch);
    }
  });
}

void drop_pages(const Checkpoint& checkpoint, const TensorView& view) {
  for (const auto& file : checkpoint.files) {
    const auto bytes = file->bytes();
    const auto begin = reinterpret_cast<uintptr_t>(bytes.data());
    const auto at = reinterpret_cast<uintptr_t>(view.data);
    if (at >= begin && at - begin < bytes.size()) file->drop(at - begin, view.bytes());
  }
}

void check_block(const TensorSpec& spec, DType dtype) {
  const DTypeTraits& type = traits(dtype);
  if (spec.cols % type.block_size != 0)
    fail(fmt::format(
        "[write] {}: rows of {} elements cannot be stored as {}, which needs a multiple "
        "of {}",
        spec.name, spec.cols, type.name, type.block_size));
}

}  // namespace tinyllama
