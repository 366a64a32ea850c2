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

constexpr int64_t kChunkElements = int64_t{2} << 20;

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

void stream_tensor(const NamedTensor& tensor, int64_t rotary_dim, DType dtype, RowOrder order,
                   ThreadPool& pool, const std::function<void(std::span<const std::byte>)>& sink) {
  const TensorView& view = tensor.view;
  const size_t out_row = row_bytes(dtype, view.cols);
  const int64_t rows_at_once =
      std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, view.cols));
  const bool interleave = order == RowOrder::interleaved && rotary_dim != 0;
  std::vector<std::byte> chunk(out_row * static_cast<size_t>(std::min(rows_at_once, view.rows)));
  for (int64_t first = 0; first < view.rows; first += rows_at_once) {
    const int64_t n = std::min(rows_at_once, view.rows - first);
    pool.for_ranges(n, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(static_cast<size_t>(view.cols));
      for (int64_t i = begin; i < end; i++) {
        const int64_t row = interleave ? deinterleaved_row(first + i, rotary_dim) : first + i;
        convert_row(tensor.row(row), view.dtype, chunk.data() + static_cast<size_t>(i) * out_row,
                    dtype, view.cols, scratch);
      }
    });
    sink(std::span(chunk).first(out_row * static_cast<size_t>(n)));
  }
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
