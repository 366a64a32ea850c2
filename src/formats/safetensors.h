// The safetensors container: named n-dimensional arrays of plain types. Reading is in place over
// mapped bytes; nothing in the header is believed before it is checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "tensor/tensor.h"

namespace tinyllama {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;           // as the file says: "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;  // outermost first; empty for a scalar
  std::span<const std::byte> data;

  int64_t elements() const;
  // The project's type of these elements, when it has one.
  std::optional<DType> float_type() const;
  // A copy as FP32: F32, F16, BF16 and F64 (rounded). Throws Error for integers.
  std::vector<float> to_f32() const;
  // A copy as 64-bit integers: I64, I32, I16, I8, U8, U16, U32, BOOL. Throws Error for floats.
  std::vector<int64_t> to_i64() const;
};

struct Safetensors {
  std::map<std::string, SafetensorsEntry, std::less<>> entries;
  std::map<std::string, std::string> metadata;
  std::shared_ptr<const MappedFile> file;  // null when parsed from memory

  // Throws Error listing a few names that exist.
  const SafetensorsEntry& at(std::string_view name) const;
};

// Checks the whole header: sizes, known types, shape x type = bytes, entries in order without gaps
// or overlaps, and data that fills the file. Throws Error naming `where` and the tensor.
Safetensors parse_safetensors(std::span<const std::byte> bytes, std::string_view where);
Safetensors open_safetensors(const std::string& path);

// One tensor to write; `write` puts exactly its bytes into the file when its turn comes, so that a
// large model is never in memory as a whole.
struct SafetensorsItem {
  std::string name;
  DType dtype;  // f32, f16 or bf16
  std::vector<int64_t> shape;
  std::function<void(AtomicFile&)> write;
};

// Writes `items` in their order with "__metadata__": {"format": "pt"}, atomically.
void write_safetensors(const std::string& path, const std::vector<SafetensorsItem>& items);

// The plain case: FP32 arrays in memory.
struct NamedArray {
  std::string name;
  std::vector<int64_t> shape;
  std::span<const float> values;
};
void write_safetensors(const std::string& path, const std::vector<NamedArray>& arrays);

}  // namespace tinyllama
