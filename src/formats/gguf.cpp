// Reading and writing the container. A count in the file is believed only as far as the bytes
// behind it could hold that many of the smallest thing counted, so that no allocation outgrows the
// file.
#include "formats/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/vocab_check.h"

namespace tinyllama {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint64_t kMaxKey = 65535;  // bytes, the specification's limit
constexpr uint64_t kMaxName = 1024;  // bytes of a tensor's name
constexpr uint64_t kMaxDim = uint64_t{1} << 40;
constexpr int kMaxDepth = 4;  // of arrays in arrays

// Bytes of a scalar, 0 for strings and arrays.
uint64_t scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    default:
      return 0;
  }
}

// ggml's names of the types this program cannot read, for messages.
constexpr std::array<std::string_view, 40> kTypeNames = {
    "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
    "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
    "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
    "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
    "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
    "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"};

// Reads counts and strings in the width that the file's version has.
class GgufReader {
 public:
  GgufReader(std::span<const std::byte> bytes, std::string_view where) : in(bytes, where) {}

  uint64_t count(std::string_view what) {
    return version == 1 ? in.read<uint32_t>(what) : in.read<uint64_t>(what);
  }
  std::string_view string(std::string_view what, uint64_t longest) {
    const uint64_t length = count(what);
    if (length > longest)
      fail(fmt::format("[load] {}: {} must be at most {} bytes long, got {}", in.where(), what,
                       longest, length));
    return as_text(in.take(length, what));
  }
  uint64_t count_bytes() const { return version == 1 ? 4 : 8; }

  ByteReader in;
  uint32_t version = 3;
};

GgufType read_type(GgufReader& reader) {
  const auto type = reader.in.read<uint32_t>("a value type");
  if (type > static_cast<uint32_t>(GgufType::f64))
    fail(fmt::format("[load] {}: metadata type must be 0 to 12, got {}", reader.in.where(), type));
  return static_cast<GgufType>(type);
}

// Steps over the elements of an array, checking every length on the way.
void skip_elements(GgufReader& reader, GgufType type, uint64_t count, int depth) {
  const uint64_t size = scalar_bytes(type);
  const uint64_t smallest = size != 0                  ? size
                            : type == GgufType::string ? reader.count_bytes()
                                                       : 4 + reader.count_bytes();
  if (count > reader.in.left() / smallest)
    fail(fmt::format("[load] {}: an array of {} elements does not fit into the {} bytes left",
                     reader.in.where(), count, reader.in.left()));
  if (size != 0) {
    reader.in.take(count * size, "an array");
    return;
  }
  for (uint64_t i = 0; i < count; i++) {
    if (type == GgufType::string) {
      reader.string("a string", UINT64_MAX);
      continue;
    }
    if (depth >= kMaxDepth)
      fail(fmt::format("[load] {}: arrays nested deeper than {}", reader.in.where(), kMaxDepth));
    const GgufType inner = read_type(reader);
    skip_elements(reader, inner, reader.count("an array's length"), depth + 1);
  }
}

GgufValue read_value(GgufReader& reader, std::span<const std::byte> bytes) {
  GgufValue value;
  value.type = read_type(reader);
  value.version = reader.version;
  if (value.type == GgufType::string) {
    value.raw = as_bytes(reader.string("a string", UINT64_MAX));
  } else if (value.type == GgufType::array) {
    value.element = read_type(reader);
    value.count = reader.count("an array's length");
    const size_t begin = reader.in.position();
    skip_elements(reader, value.element, value.count, 1);
    value.raw = bytes.subspan(begin, reader.in.position() - begin);
  } else {
    value.raw = reader.in.take(scalar_bytes(value.type), "a value");
  }
  return value;
}

struct TensorPlace {
  uint64_t offset = 0, size = 0;
  GgufTensor* tensor = nullptr;
};

std::optional<DType> known_type(uint32_t type) {
  for (int i = 0; i < kDTypeCount; i++) {
    if (traits(static_cast<DType>(i)).gguf_type == type) return static_cast<DType>(i);
  }
  return {};
}

// Bytes of the tensor's data, all products checked; the first dimension must be whole blocks.
uint64_t data_bytes(const GgufTensor& tensor, std::string_view where) {
  const DTypeTraits& type = traits(*tensor.dtype);
  if (tensor.dims[0] % type.block_size != 0)
    fail(fmt::format("[load] {}: rows of {} must be a multiple of {} elements ({}), got {}", where,
                     tensor.name, type.block_size, tensor.type_name(), tensor.dims[0]));
  uint64_t size = static_cast<uint64_t>(tensor.dims[0] / type.block_size);
  bool fits = multiply_fits(size, static_cast<uint64_t>(type.block_bytes), size);
  for (size_t i = 1; i < tensor.dims.size(); i++)
    fits = fits && multiply_fits(size, static_cast<uint64_t>(tensor.dims[i]), size);
  if (!fits) fail(fmt::format("[load] {}: shape of {} overflows", where, tensor.name));
  return size;
}

TensorPlace read_tensor(GgufReader& reader, uint64_t alignment, Gguf& into) {
  const std::string_view where = into.where;
  GgufTensor tensor;
  tensor.name = reader.string("a tensor's name", kMaxName);
  if (!is_utf8(tensor.name))
    fail(fmt::format("[load] {}: a tensor's name is not valid UTF-8", where));
  const auto n_dims = reader.in.read<uint32_t>("a tensor's rank");
  if (n_dims < 1 || n_dims > 4)
    fail(fmt::format("[load] {}: {} must have 1 to 4 dimensions, got {}", where, tensor.name,
                     n_dims));
  for (uint32_t i = 0; i < n_dims; i++) {
    const uint64_t size = reader.count("a dimension");
    if (size < 1 || size > kMaxDim)
      fail(fmt::format("[load] {}: dimensions of {} must be 1 to 2^40, got {}", where, tensor.name,
                       size));
    tensor.dims.push_back(static_cast<int64_t>(size));
  }
  tensor.type = reader.in.read<uint32_t>("a tensor's type");
  tensor.dtype = known_type(tensor.type);
  TensorPlace place;
  place.offset = reader.in.read<uint64_t>("a tensor's offset");
  if (place.offset % alignment != 0)
    fail(fmt::format("[load] {}: offset of {} must be a multiple of {}, got {}", where, tensor.name,
                     alignment, place.offset));
  if (tensor.dtype) place.size = data_bytes(tensor, where);
  const std::string name = tensor.name;
  const auto [at, added] = into.tensors.emplace(name, std::move(tensor));
  if (!added) fail(fmt::format("[load] {}: tensor {} appears twice", where, name));
  place.tensor = &at->second;
  return place;
}

// Cuts every tensor's bytes out of `data`; ranges must be inside it and must not overlap, which
// also bounds the sum of all tensors by the file's size.
void place_tensors(std::vector<TensorPlace>& places, std::span<const std::byte> data,
                   std::string_view where) {
  std::sort(places.begin(), places.end(),
            [](const TensorPlace& a, const TensorPlace& b) { return a.offset < b.offset; });
  uint64_t end = 0;
  for (const TensorPlace& place : places) {
    GgufTensor& tensor = *place.tensor;
    if (!tensor.dtype) continue;
    if (place.offset > data.size() || place.size > data.size() - place.offset)
      fail(
          fmt::format("[load] {}: {} wants {} bytes at {}, but there are {} bytes of data: the "
                      "file is truncated or damaged",
                      where, tensor.name, place.size, place.offset, data.size()));
    if (place.offset < end)
      fail(fmt::format("[load] {}: {} overlaps the tensor before it", where, tensor.name));
    end = place.offset + place.size;
    tensor.data = data.subspan(static_cast<size_t>(place.offset), static_cast<size_t>(place.size));
  }
}

uint64_t read_alignment(const Gguf& file) {
  const auto value = file.integer("general.alignment");
  if (!value) return kDefaultAlignment;
  const auto alignment = static_cast<uint64_t>(std::max<int64_t>(*value, 0));
  if (alignment < 8 || alignment > kMaxAlignment || !std::has_single_bit(alignment))
    fail(fmt::format("[load] {}: general.alignment must be a power of two in [8, {}], got {}",
                     file.where, kMaxAlignment, *value));
  return alignment;
}

template <class T>
T raw_as(std::span<const std::byte> raw, size_t index = 0) {
  T value;
  std::memcpy(&value, raw.data() + index * sizeof(T), sizeof(T));
  return value;
}

// Element `index` of `raw` as an integer, when `type` is one.
std::optional<int64_t> integer_at(GgufType type, std::span<const std::byte> raw, size_t index) {
  switch (type) {
    case GgufType::u8:
      return raw_as<uint8_t>(raw, index);
    case GgufType::i8:
      return raw_as<int8_t>(raw, index);
    case GgufType::u16:
      return raw_as<uint16_t>(raw, index);
    case GgufType::i16:
      return raw_as<int16_t>(raw, index);
    case GgufType::u32:
      return raw_as<uint32_t>(raw, index);
    case GgufType::i32:
      return raw_as<int32_t>(raw, index);
    case GgufType::i64:
      return raw_as<int64_t>(raw, index);
    case GgufType::u64: {
      const auto value = raw_as<uint64_t>(raw, index);
      if (value > uint64_t{INT64_MAX}) return {};
      return static_cast<int64_t>(value);
    }
    default:
      return {};
  }
}

// The double whose decimal is the shortest that gives this float: 1e-5 rather than 9.9999997e-06.
double shortest(float value) {
  return std::strtod(fmt::format("{}", value).c_str(), nullptr);
}

[[noreturn]] void wrong_type(const Gguf& file, std::string_view key, std::string_view want) {
  fail(fmt::format("[load] {}: {} must be {}, got type {}", file.where, key, want,
                   static_cast<uint32_t>(file.find(key)->type)));
}

}  // namespace

std::string GgufTensor::type_name() const {
  return type < kTypeNames.size() ? std::string(kTypeNames[type]) : fmt::format("type {}", type);
}

const GgufValue* Gguf::find(std::string_view key) const {
  const auto at = metadata.find(key);
  return at == metadata.end() ? nullptr : &at->second;
}

std::optional<int64_t> Gguf::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  const auto result = integer_at(value->type, value->raw, 0);
  if (!result) wrong_type(*this, key, "an integer");
  return result;
}

std::optional<double> Gguf::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  double result;
  if (value->type == GgufType::f32) {
    const auto single = raw_as<float>(value->raw);
    result = std::isfinite(single) ? shortest(single) : static_cast<double>(single);
  } else if (value->type == GgufType::f64) {
    result = raw_as<double>(value->raw);
  } else {
    wrong_type(*this, key, "a number");
  }
  if (!std::isfinite(result)) fail(fmt::format("[load] {}: {} is not finite", where, key));
  return result;
}

std::optional<bool> Gguf::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  if (value->type != GgufType::boolean) wrong_type(*this, key, "a boolean");
  return raw_as<uint8_t>(value->raw) != 0;
}

std::optional<std::string> Gguf::text(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  if (value->type != GgufType::string) wrong_type(*this, key, "a string");
  return std::string(as_text(value->raw));
}

std::optional<std::vector<std::string_view>> Gguf::texts(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  if (value->type != GgufType::array || value->element != GgufType::string)
    wrong_type(*this, key, "an array of strings");
  GgufReader reader(value->raw, where);
  reader.version = value->version;
  std::vector<std::string_view> result;
  result.reserve(static_cast<size_t>(value->count));
  for (uint64_t i = 0; i < value->count; i++)
    result.push_back(reader.string("a string", UINT64_MAX));
  return result;
}

std::optional<std::vector<float>> Gguf::floats(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  if (value->type != GgufType::array || value->element != GgufType::f32)
    wrong_type(*this, key, "an array of FP32");
  std::vector<float> result(static_cast<size_t>(value->count));
  if (!result.empty()) std::memcpy(result.data(), value->raw.data(), value->raw.size());
  return result;
}

std::optional<std::vector<int64_t>> Gguf::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  std::vector<int64_t> result;
  if (value->type == GgufType::array) result.reserve(static_cast<size_t>(value->count));
  for (uint64_t i = 0; value->type == GgufType::array && i < value->count; i++) {
    const auto element = integer_at(value->element, value->raw, static_cast<size_t>(i));
    if (!element) wrong_type(*this, key, "an array of integers");
    result.push_back(*element);
  }
  if (value->type != GgufType::array) wrong_type(*this, key, "an array of integers");
  return result;
}

Gguf parse_gguf(std::span<const std::byte> bytes, std::string_view where) {
  GgufReader reader(bytes, where);
  const auto magic = reader.in.read<uint32_t>("magic");
  if (magic != kMagic) fail(fmt::format("[load] {}: not a GGUF file", where));
  Gguf file;
  file.where = where;
  file.version = reader.version = reader.in.read<uint32_t>("version");
  if (file.version < 1 || file.version > 3)
    fail(fmt::format("[load] {}: want GGUF version 1 to 3, got {}{}", where, file.version,
                     (file.version & 0xffff) == 0 ? ": big-endian files are not supported" : ""));
  const uint64_t n_tensors = reader.count("tensor count");
  const uint64_t n_metadata = reader.count("metadata count");
  const uint64_t smallest_tensor = 2 * reader.count_bytes() + 16,
                 smallest_pair = 5 + reader.count_bytes();
  if (n_tensors > bytes.size() / smallest_tensor || n_metadata > bytes.size() / smallest_pair)
    fail(fmt::format("[load] {}: {} tensors and {} metadata keys do not fit into {} bytes", where,
                     n_tensors, n_metadata, bytes.size()));
  for (uint64_t i = 0; i < n_metadata; i++) {
    const std::string key(reader.string("a key", kMaxKey));
    if (!file.metadata.emplace(key, read_value(reader, bytes)).second)
      fail(fmt::format("[load] {}: key {} appears twice", where, key));
  }
  const uint64_t alignment = read_alignment(file);
  std::vector<TensorPlace> places;
  for (uint64_t i = 0; i < n_tensors; i++) places.push_back(read_tensor(reader, alignment, file));
  uint64_t data_begin = 0;
  if (!round_up_fits(reader.in.position(), alignment, data_begin) || data_begin > bytes.size())
    data_begin = bytes.size();
  place_tensors(places, bytes.subspan(static_cast<size_t>(data_begin)), where);
  return file;
}

// ---- writing ----

namespace {

template <class T>
void put(std::string& out, T value) {
  const auto bytes = std::bit_cast<std::array<char, sizeof(T)>>(value);
  out.append(bytes.data(), bytes.size());
}
void put_string(std::string& out, std::string_view text) {
  put(out, static_cast<uint64_t>(text.size()));
  out += text;
}

}  // namespace

void GgufHeader::start(std::string_view key, GgufType type) {
  put_string(metadata_, key);
  put(metadata_, static_cast<uint32_t>(type));
  n_metadata_++;
}

void GgufHeader::add(std::string_view key, uint32_t value) {
  start(key, GgufType::u32);
  put(metadata_, value);
}
void GgufHeader::add(std::string_view key, float value) {
  start(key, GgufType::f32);
  put(metadata_, value);
}
void GgufHeader::add(std::string_view key, bool value) {
  start(key, GgufType::boolean);
  put(metadata_, static_cast<uint8_t>(value ? 1 : 0));
}
void GgufHeader::add(std::string_view key, std::string_view value) {
  start(key, GgufType::string);
  put_string(metadata_, value);
}
void GgufHeader::add(std::string_view key, const std::vector<std::string_view>& values) {
  start(key, GgufType::array);
  put(metadata_, static_cast<uint32_t>(GgufType::string));
  put(metadata_, static_cast<uint64_t>(values.size()));
  for (const std::string_view value : values) put_string(metadata_, value);
}
void GgufHeader::add(std::string_view key, std::span<const float> values) {
  start(key, GgufType::array);
  put(metadata_, static_cast<uint32_t>(GgufType::f32));
  put(metadata_, static_cast<uint64_t>(values.size()));
  for (const float value : values) put(metadata_, value);
}
void GgufHeader::add(std::string_view key, std::span<const int32_t> values) {
  start(key, GgufType::array);
  put(metadata_, static_cast<uint32_t>(GgufType::i32));
  put(metadata_, static_cast<uint64_t>(values.size()));
  for (const int32_t value : values) put(metadata_, value);
}

void GgufHeader::add_tensor(std::string_view name, DType dtype, const std::vector<int64_t>& dims) {
  TL_CHECK(!dims.empty());
  put_string(tensors_, name);
  put(tensors_, static_cast<uint32_t>(dims.size()));
  uint64_t bytes = row_bytes(dtype, dims[0]);
  for (size_t i = 0; i < dims.size(); i++) {
    put(tensors_, static_cast<uint64_t>(dims[i]));
    if (i > 0) bytes *= static_cast<uint64_t>(dims[i]);
  }
  put(tensors_, traits(dtype).gguf_type);
  put(tensors_, offset_);
  offset_ = (offset_ + bytes + kAlignment - 1) / kAlignment * kAlignment;
  n_tensors_++;
}

std::string GgufHeader::finish() const {
  std::string out;
  put(out, kMagic);
  put(out, uint32_t{3});
  put(out, n_tensors_);
  put(out, n_metadata_);
  out += metadata_;
  out += tensors_;
  out.resize((out.size() + kAlignment - 1) / kAlignment * kAlignment, '\0');
  return out;
}

}  // namespace tinyllama
