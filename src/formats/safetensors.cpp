// Layout: u64 header length, a JSON header, then the data; offsets in the header count from the
// data's start (https://github.com/huggingface/safetensors, "Format").
#include "formats/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/json_detail.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

using json_detail::Json;

constexpr uint64_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr size_t kMaxDims = 8;

struct Type {
  std::string_view name;
  uint64_t bytes;
};
constexpr std::array<Type, 15> kTypes = {{{"F32", 4},
                                          {"BF16", 2},
                                          {"F16", 2},
                                          {"F64", 8},
                                          {"I64", 8},
                                          {"I32", 4},
                                          {"I16", 2},
                                          {"I8", 1},
                                          {"U64", 8},
                                          {"U32", 4},
                                          {"U16", 2},
                                          {"U8", 1},
                                          {"BOOL", 1},
                                          {"F8_E4M3", 1},
                                          {"F8_E5M2", 1}}};

uint64_t type_bytes(std::string_view name, std::string_view tensor, std::string_view where) {
  for (const Type& type : kTypes) {
    if (type.name == name) return type.bytes;
  }
  fail(fmt::format("[load] {}: {} has unknown dtype \"{}\"", where, tensor, name.substr(0, 32)));
}

std::vector<int64_t> read_shape(const Json& json, const std::string& name, std::string_view where) {
  if (!json.is_array() || json.size() > kMaxDims)
    fail(fmt::format("[load] {}: shape of {} must be a list of at most {} sizes", where, name,
                     kMaxDims));
  std::vector<int64_t> shape;
  for (const Json& size : json) {
    shape.push_back(json_detail::as_integer(size, "shape of " + name, where));
    if (shape.back() < 0)
      fail(fmt::format("[load] {}: shape of {} has a negative size", where, name));
  }
  return shape;
}

struct Range {
  uint64_t begin = 0, end = 0;
  const std::string* name = nullptr;
};

// Reads one member of the header; its data is cut out of `data` once the range is known to be
// inside.
SafetensorsEntry read_entry(const std::string& name, const Json& json,
                            std::span<const std::byte> data, std::string_view where, Range& range) {
  const auto dtype = json_detail::text(json, "dtype", where);
  const Json* shape = json_detail::find(json, "shape");
  const Json* offsets = json_detail::find(json, "data_offsets");
  if (!dtype || shape == nullptr || offsets == nullptr || !offsets->is_array() ||
      offsets->size() != 2)
    fail(fmt::format("[load] {}: {} needs dtype, shape and two data_offsets", where, name));
  SafetensorsEntry entry{name, *dtype, read_shape(*shape, name, where), {}};
  uint64_t size = type_bytes(entry.dtype, name, where);
  for (const int64_t n : entry.shape) {
    if (!multiply_fits(size, static_cast<uint64_t>(n), size))
      fail(fmt::format("[load] {}: shape of {} overflows", where, name));
  }
  const int64_t begin = json_detail::as_integer((*offsets)[0], "data_offsets", where);
  const int64_t end = json_detail::as_integer((*offsets)[1], "data_offsets", where);
  if (begin < 0 || end < begin || static_cast<uint64_t>(end) > data.size())
    fail(fmt::format(
        "[load] {}: data of {} must lie in [0, {}), got [{}, {}): the file is truncated "
        "or damaged",
        where, name, data.size(), begin, end));
  if (static_cast<uint64_t>(end - begin) != size)
    fail(fmt::format("[load] {}: want {} bytes for {}, got {}", where, size, name, end - begin));
  range = {static_cast<uint64_t>(begin), static_cast<uint64_t>(end), nullptr};
  entry.data = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(size));
  return entry;
}

// Tensors must tile the data: no gap, no overlap, nothing behind the last.
void check_tiling(std::vector<Range> ranges, uint64_t data_size, std::string_view where) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t at = 0;
  for (const Range& range : ranges) {
    if (range.begin != at)
      fail(fmt::format("[load] {}: {} must start at {}, got {}: tensors overlap or leave a gap",
                       where, *range.name, at, range.begin));
    at = range.end;
  }
  if (at != data_size)
    fail(fmt::format("[load] {}: {} bytes of tensors, but {} bytes of data", where, at, data_size));
}

template <class T>
std::vector<int64_t> widen(std::span<const std::byte> data) {
  std::vector<int64_t> values(data.size() / sizeof(T));
  for (size_t i = 0; i < values.size(); i++) {
    T value;
    std::memcpy(&value, data.data() + i * sizeof(T), sizeof(T));
    values[i] = int64_t{value};  // with its sign
  }
  return values;
}

std::string header_text(const std::vector<SafetensorsItem>& items) {
  json_detail::OrderedJson header;
  header["__metadata__"] = {{"format", "pt"}};
  uint64_t at = 0;
  for (const SafetensorsItem& item : items) {
    TL_CHECK(!traits(item.dtype).safetensors_name.empty());
    int64_t elements = 1;
    for (const int64_t n : item.shape) elements *= n;
    const uint64_t end = at + row_bytes(item.dtype, elements);
    header[item.name] = {{"dtype", std::string(traits(item.dtype).safetensors_name)},
                         {"shape", item.shape},
                         {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data starts 8-byte aligned
  return text;
}

}  // namespace

int64_t SafetensorsEntry::elements() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

std::optional<DType> SafetensorsEntry::float_type() const {
  for (int i = 0; i < kDTypeCount; i++) {
    if (traits(static_cast<DType>(i)).safetensors_name == dtype) return static_cast<DType>(i);
  }
  return {};
}

std::vector<float> SafetensorsEntry::to_f32() const {
  std::vector<float> values(static_cast<size_t>(elements()));
  if (const auto type = float_type()) {
    decode_row(*type, data.data(), values.data(), elements());
  } else if (dtype == "F64") {
    for (size_t i = 0; i < values.size(); i++) {
      double value;
      std::memcpy(&value, data.data() + i * sizeof value, sizeof value);
      values[i] = static_cast<float>(value);
    }
  } else {
    fail(fmt::format("[load] {}: want a float type, got {}", name, dtype));
  }
  return values;
}

std::vector<int64_t> SafetensorsEntry::to_i64() const {
  if (dtype == "I64") return widen<int64_t>(data);
  if (dtype == "I32") return widen<int32_t>(data);
  if (dtype == "I16") return widen<int16_t>(data);
  if (dtype == "I8") return widen<int8_t>(data);
  if (dtype == "U32") return widen<uint32_t>(data);
  if (dtype == "U16") return widen<uint16_t>(data);
  if (dtype == "U8" || dtype == "BOOL") return widen<uint8_t>(data);
  fail(fmt::format("[load] {}: want an integer type, got {}", name, dtype));
}

const SafetensorsEntry& Safetensors::at(std::string_view name) const {
  const auto found = entries.find(name);
  if (found != entries.end()) return found->second;
  std::string some;
  for (auto it = entries.begin(); it != entries.end() && some.size() < 200; ++it)
    some += (some.empty() ? "" : ", ") + it->first;
  fail(fmt::format("[load] {}: no tensor {}; there are {}", file ? file->path() : "safetensors",
                   name, some));
}

Safetensors parse_safetensors(std::span<const std::byte> bytes, std::string_view where) {
  ByteReader in(bytes, where);
  const auto length = in.read<uint64_t>("header length");
  if (length > kMaxHeader)
    fail(fmt::format("[load] {}: header length must be at most {}, got {}: not a safetensors file",
                     where, kMaxHeader, length));
  const std::string_view text = as_text(in.take(length, "header"));
  const std::span<const std::byte> data = in.take(in.left(), "data");
  const Json header = json_detail::parse_object(text, where);

  Safetensors result;
  std::vector<Range> ranges;
  for (const auto& [name, member] : header.items()) {
    if (name == "__metadata__") {
      if (member.is_null()) continue;
      if (!member.is_object())
        fail(fmt::format("[load] {}: __metadata__ must be an object", where));
      for (const auto& [key, value] : member.items())
        result.metadata[key] = json_detail::as_string(value, "__metadata__." + key, where);
      continue;
    }
    Range range;
    auto entry = read_entry(name, member, data, where, range);
    const auto at = result.entries.emplace(name, std::move(entry)).first;
    range.name = &at->first;
    ranges.push_back(range);
  }
  check_tiling(std::move(ranges), data.size(), where);
  return result;
}

Safetensors open_safetensors(const std::string& path) {
  auto file = std::make_shared<const MappedFile>(path);
  Safetensors result = parse_safetensors(file->bytes(), path);
  result.file = std::move(file);
  return result;
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsItem>& items) {
  const std::string header = header_text(items);
  AtomicFile out(path);
  const uint64_t length = header.size();
  out.write(std::as_bytes(std::span(&length, 1)));
  out.write(header);
  for (const SafetensorsItem& item : items) {
    int64_t elements = 1;
    for (const int64_t n : item.shape) elements *= n;
    const uint64_t end = out.position() + row_bytes(item.dtype, elements);
    item.write(out);
    TL_CHECK(out.position() == end);
  }
  out.commit();
}

void write_safetensors(const std::string& path, const std::vector<NamedArray>& arrays) {
  std::vector<SafetensorsItem> items;
  items.reserve(arrays.size());
  for (const NamedArray& array : arrays) {
    items.push_back({array.name, DType::f32, array.shape, [values = array.values](AtomicFile& out) {
                       out.write(std::as_bytes(values));
                     }});
  }
  write_safetensors(path, items);
}

}  // namespace tinyllama
