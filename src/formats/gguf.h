// The GGUF container, versions 1 to 3: typed metadata and named tensors. What the names mean for a
// Llama is gguf_model.h's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace tinyllama {

// The number of a metadata value's type in the file.
enum class GgufType : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

// One metadata value, in place: `raw` holds a scalar's bytes, a string's characters, or an array's
// elements as the file has them (checked when parsed).
struct GgufValue {
  GgufType type = GgufType::u8;
  std::span<const std::byte> raw;
  GgufType element = GgufType::u8;  // of an array
  uint64_t count = 0;               // of an array
  uint32_t version = 3;             // strings in arrays have 32-bit lengths in version 1
};

struct GgufTensor {
  std::string name;
  uint32_t type = 0;                // ggml's number
  std::optional<DType> dtype;       // ours; nothing for a type this program does not know
  std::vector<int64_t> dims;        // innermost first, 1 to 4 of them, as in the file
  std::span<const std::byte> data;  // empty for an unknown type

  // "Q5_K", or "type 99".
  std::string type_name() const;
};

// The typed getters return nothing when the key is absent and throw Error when its type or value
// does not fit; the messages start with `where`.
struct Gguf {
  std::string where;
  uint32_t version = 3;
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::map<std::string, GgufTensor, std::less<>> tensors;

  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;  // FP32 as its shortest decimal
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string> text(std::string_view key) const;
  std::optional<std::vector<std::string_view>> texts(std::string_view key) const;
  std::optional<std::vector<float>> floats(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;
  const GgufValue* find(std::string_view key) const;
};

// Parses and checks the whole header; the result points into `bytes`. Throws Error for anything out
// of bounds: counts, lengths, types, alignment, offsets, overlapping tensors, names used twice.
Gguf parse_gguf(std::span<const std::byte> bytes, std::string_view where);

// Builds a version 3 header. Keys and tensors appear in the order they were added.
class GgufHeader {
 public:
  static constexpr uint64_t kAlignment = 32;

  void add(std::string_view key, uint32_t value);
  void add(std::string_view key, float value);
  void add(std::string_view key, bool value);
  void add(std::string_view key, std::string_view value);
  void add(std::string_view key, const char* value) { add(key, std::string_view(value)); }
  void add(std::string_view key, const std::vector<std::string_view>& values);
  void add(std::string_view key, std::span<const float> values);
  void add(std::string_view key, std::span<const int32_t> values);
  void add_tensor(std::string_view name, DType dtype, const std::vector<int64_t>& dims);

  // The header's bytes, padded so that tensor data may follow; each tensor starts at the next
  // multiple of kAlignment.
  std::string finish() const;

 private:
  void start(std::string_view key, GgufType type);

  std::string metadata_, tensors_;
  uint64_t n_metadata_ = 0, n_tensors_ = 0, offset_ = 0;
};

}  // namespace tinyllama
