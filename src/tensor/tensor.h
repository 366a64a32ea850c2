// Data types, views and owned memory. A Tensor never owns; a Buffer always does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <type_traits>

namespace tinyllama {

enum class DType : uint8_t { f32, f16, bf16, q4_0, q8_0, q4_k, q6_k };
inline constexpr int kDTypeCount = 7;

// One row per data type; whatever differs between types and is not arithmetic stands here.
struct DTypeTraits {
  std::string_view name;  // "q4_0": our spelling, in options and messages
  int block_size;         // elements in one block; a row must be a multiple
  int block_bytes;        // bytes of one block in a file
  bool quantized;
  uint32_t gguf_type;                 // ggml's number of the type in a GGUF file
  std::string_view safetensors_name;  // "BF16"; empty when safetensors has no such type
};

const DTypeTraits& traits(DType dtype);
// Throws Error for an unknown name, listing the known ones.
DType dtype_from_name(std::string_view name);

// Bytes of a contiguous row of `cols` elements; cols must be a multiple of the block size.
size_t row_bytes(DType dtype, int64_t cols);

// A matrix view (rows, cols), rows `row_stride` bytes apart, elements of a row contiguous. A vector
// is one row. Byte is std::byte for memory that may be written, const std::byte for weights in a
// mapped file.
template <class Byte>
struct BasicTensor {
  Byte* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0, cols = 0;
  size_t row_stride = 0;

  BasicTensor() = default;
  BasicTensor(Byte* bytes, DType type, int64_t n_rows, int64_t n_cols)
      : data(bytes), dtype(type), rows(n_rows), cols(n_cols), row_stride(row_bytes(type, n_cols)) {}
  BasicTensor(Byte* bytes, DType type, int64_t n_rows, int64_t n_cols, size_t stride)
      : data(bytes), dtype(type), rows(n_rows), cols(n_cols), row_stride(stride) {}
  // A writable view is also a readable one.
  template <class Other>
  requires(std::is_const_v<Byte>&& std::is_same_v<const Other, Byte>)
      BasicTensor(const BasicTensor<Other>& other)  // NOLINT(google-explicit-constructor)
      : BasicTensor(other.data, other.dtype, other.rows, other.cols, other.row_stride) {}

  explicit operator bool() const { return data != nullptr; }
  Byte* row(int64_t r) const { return data + static_cast<size_t>(r) * row_stride; }
  template <class T>
  auto* row_as(int64_t r) const {
    if constexpr (std::is_const_v<Byte>) {
      return reinterpret_cast<const T*>(row(r));
    } else {
      return reinterpret_cast<T*>(row(r));
    }
  }
  int64_t elements() const { return rows * cols; }
  size_t bytes() const { return static_cast<size_t>(rows) * row_bytes(dtype, cols); }
  bool contiguous() const { return row_stride == row_bytes(dtype, cols); }
  BasicTensor rows_slice(int64_t begin, int64_t n) const {
    return {row(begin), dtype, n, cols, row_stride};
  }
};
using Tensor = BasicTensor<std::byte>;
using TensorView = BasicTensor<const std::byte>;

// Memory from a backend (host, huge pages, a device); freed the way it was made.
class Buffer {
 public:
  using Free = std::function<void(std::byte*, size_t)>;
  Buffer() = default;
  Buffer(std::byte* data, size_t size, Free free)
      : memory_(data,
                [size, free = std::move(free)](std::byte* p) {
                  if (p != nullptr) free(p, size);
                }),
        size_(size) {}

  std::byte* data() const { return memory_.get(); }
  size_t size() const { return size_; }

 private:
  std::unique_ptr<std::byte, std::function<void(std::byte*)>> memory_;
  size_t size_ = 0;
};

// Zeroed host memory, 64-byte aligned, on huge pages where the system gives them.
Buffer alloc_host(size_t bytes);

}  // namespace tinyllama
