// The pages of a Parquet column, see parquet.h.
#include <fmt/format.h>
#include <snappy.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "data/parquet.h"
#include "data/thrift.h"

namespace tinyllama {
namespace {

using Bytes = std::span<const std::byte>;

constexpr uint64_t kMaxPage = uint64_t{1} << 30;
// A page may say to unpack to so many times its size, or to this: what a small file can allocate.
constexpr uint64_t kMaxRatio = 4096, kAlwaysAllowed = uint64_t{1} << 24;

enum Codec { kUncompressed = 0, kSnappy = 1, kGzip = 2, kZstd = 6 };
enum Encoding { kPlain = 0, kPlainDictionary = 2, kRle = 3, kRleDictionary = 8 };
enum PageType { kDataPage = 0, kDictionaryPage = 2, kDataPageV2 = 3 };

struct PageHeader {
  int64_t type = -1, unpacked = -1, packed = -1;
  int64_t n_values = -1, encoding = -1, level_encoding = kRle;
  int64_t definition_bytes = 0, repetition_bytes = 0;  // of version 2
  bool compressed = true;
};

// The fields that the three kinds of page headers have, by their numbers in each.
struct HeaderNumbers {
  int n_values, encoding, level_encoding, definition_bytes, repetition_bytes, compressed;
};

PageHeader read_page_header(ThriftReader& reader) {
  PageHeader header;
  const auto kind = [&](const HeaderNumbers& numbers) {
    reader.structure([&](const ThriftReader::Field& field) {
      if (field.id == numbers.compressed && ThriftReader::is_bool(field.type)) {
        header.compressed = field.type == ThriftReader::kTrue;
        return true;
      }
      if (!ThriftReader::is_int(field.type)) return false;
      int64_t* to = field.id == numbers.n_values           ? &header.n_values
                    : field.id == numbers.encoding         ? &header.encoding
                    : field.id == numbers.level_encoding   ? &header.level_encoding
                    : field.id == numbers.definition_bytes ? &header.definition_bytes
                    : field.id == numbers.repetition_bytes ? &header.repetition_bytes
                                                           : nullptr;
      if (to == nullptr) return false;
      *to = reader.int_value();
      return true;
    });
    return true;
  };
  reader.structure([&](const ThriftReader::Field& field) {
    if (field.type == ThriftReader::kStruct) {
      if (field.id == 5) return kind({1, 2, 3, -1, -1, -1});
      if (field.id == 7) return kind({1, 2, -1, -1, -1, -1});
      if (field.id == 8) return kind({1, 4, -1, 5, 6, 7});
      return false;
    }
    if (!ThriftReader::is_int(field.type) || field.id < 1 || field.id > 3) return false;
    const int64_t value = reader.int_value();
    (field.id == 1 ? header.type : field.id == 2 ? header.unpacked : header.packed) = value;
    return true;
  });
  return header;
}

// Numbers in the hybrid of runs and bit-packed groups of eight.
class RleReader {
 public:
  RleReader() = default;
  RleReader(Bytes bytes, int width) : bytes_(bytes), width_(width) {}

  // False when the data ends too soon.
  bool next(uint32_t& value) {
    while (run_ == 0 && packed_ == 0)
      if (!next_group()) return false;
    if (run_ > 0) {
      run_--;
      value = run_value_;
      return true;
    }
    packed_--;
    value = 0;
    for (int bit = 0; bit < width_; bit++, bit_++) {
      const uint64_t at = bit_ / 8;
      if (at >= group_.size()) return false;
      value |= (static_cast<uint32_t>(group_[at]) >> (bit_ % 8) & 1U) << bit;
    }
    return true;
  }

 private:
  bool next_group() {
    uint64_t header = 0;
    for (int shift = 0;; shift += 7) {
      if (bytes_.empty() || shift > 28) return false;
      const auto b = static_cast<uint64_t>(bytes_.front());
      bytes_ = bytes_.subspan(1);
      header |= (b & 0x7f) << shift;
      if (b < 0x80) break;
    }
    const uint64_t n = header >> 1, width = static_cast<uint64_t>(width_);
    if ((header & 1) != 0) {
      const uint64_t size = std::min<uint64_t>(n * width, bytes_.size());
      group_ = bytes_.first(size);
      bytes_ = bytes_.subspan(size);
      packed_ = n * 8;
      bit_ = 0;
      return true;
    }
    const size_t value_bytes = (width + 7) / 8;
    if (bytes_.size() < value_bytes) return false;
    run_value_ = 0;
    std::memcpy(&run_value_, bytes_.data(), value_bytes);
    bytes_ = bytes_.subspan(value_bytes);
    run_ = n;
    return true;
  }

  Bytes bytes_, group_;
  int width_ = 0;
  uint64_t run_ = 0, packed_ = 0, bit_ = 0;
  uint32_t run_value_ = 0;
};

// Memory that is not cleared first.
struct Unpacked {
  std::unique_ptr<std::byte[]> memory;
  size_t size = 0;
  Bytes bytes() const { return {memory.get(), size}; }
};

bool unpack_gzip(Bytes from, Unpacked& to) {
  z_stream stream = {};
  if (::inflateInit2(&stream, 15 + 32) != Z_OK) return false;  // gzip, or zlib as some writers do
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(from.data()));
  stream.avail_in = static_cast<uInt>(from.size());
  stream.next_out = reinterpret_cast<Bytef*>(to.memory.get());
  stream.avail_out = static_cast<uInt>(to.size);
  const bool good = ::inflate(&stream, Z_FINISH) == Z_STREAM_END && stream.avail_out == 0;
  ::inflateEnd(&stream);
  return good;
}

// Whether `from` unpacks to exactly to.size bytes.
bool unpack(int codec, Bytes from, Unpacked& to) {
  const char* packed = reinterpret_cast<const char*>(from.data());
  if (codec == kGzip) return unpack_gzip(from, to);
  if (codec == kZstd)
    return ::ZSTD_decompress(to.memory.get(), to.size, packed, from.size()) == to.size;
  size_t size = 0;
  return snappy::GetUncompressedLength(packed, from.size(), &size) && size == to.size &&
         snappy::RawUncompress(packed, from.size(), reinterpret_cast<char*>(to.memory.get()));
}

// The next text of PLAIN data: its length, then its bytes. False when they are not there.
bool take_text(Bytes& bytes, std::string_view& text) {
  uint32_t size = 0;
  if (bytes.size() < sizeof size) return false;
  std::memcpy(&size, bytes.data(), sizeof size);
  if (size > bytes.size() - sizeof size) return false;
  text = {reinterpret_cast<const char*>(bytes.data()) + sizeof size, size};
  bytes = bytes.subspan(sizeof size + size);
  return true;
}

}  // namespace

struct ParquetColumn::State {
  const ParquetFile* file;
  const ParquetColumnInfo* column;
  size_t next_chunk = 0;
  const ParquetChunk* chunk = nullptr;
  Bytes left = {};           // of the chunk: pages not yet read
  uint64_t values_left = 0;  // of the chunk, those of the present page included
  uint64_t in_page = 0;      // of the present page
  Unpacked dictionary_page = {}, page = {};
  bool has_dictionary = false, by_dictionary = false;
  std::vector<std::string_view> dictionary = {};
  RleReader levels = {}, indices = {};
  Bytes plain = {};  // what is left of a plain page

  bool next(std::optional<std::string_view>& value);
  void open_chunk();
  void open_page();
  void open_dictionary(const PageHeader& header, Bytes body);
  void open_data(const PageHeader& header, Bytes body);
  Bytes take_levels(const PageHeader& header, Bytes body);
  Bytes unpacked(Bytes body, uint64_t size, Unpacked& to) const;
  [[noreturn]] void refuse(std::string_view what) const {
    fail(fmt::format("[parquet] {}: column {}: {}", file->where, column->name, what));
  }
};

void ParquetColumn::State::open_chunk() {
  chunk = &column->chunks[next_chunk++];
  left = file->bytes.subspan(chunk->begin, chunk->end - chunk->begin);
  values_left = chunk->n_values;
  has_dictionary = false;
  constexpr std::array<const char*, 8> kNames = {"none",   "Snappy", "gzip", "LZO",
                                                 "Brotli", "LZ4",    "zstd", "LZ4"};
  const int codec = chunk->codec;
  if (codec != kUncompressed && codec != kSnappy && codec != kGzip && codec != kZstd)
    refuse(fmt::format(
        "want compression by Snappy, gzip, zstd or none, got {}",
        codec >= 0 && codec < 8 ? kNames[static_cast<size_t>(codec)] : std::to_string(codec)));
}

// The body of a page, of which the header says that it has `size` bytes when unpacked.
Bytes ParquetColumn::State::unpacked(Bytes body, uint64_t size, Unpacked& to) const {
  if (chunk->codec == kUncompressed) {
    if (size != body.size()) refuse("the data is damaged: a page of another size than it says");
    return body;
  }
  if (size > kMaxPage || size > std::max(kAlwaysAllowed, body.size() * kMaxRatio))
    refuse(fmt::format("a page of {} bytes that would unpack to {} is refused", body.size(), size));
  to = {std::make_unique_for_overwrite<std::byte[]>(size), size};
  if (size > 0 && !unpack(chunk->codec, body, to))
    refuse("the data is damaged: a page does not unpack to the size that it says");
  return to.bytes();
}

void ParquetColumn::State::open_page() {
  if (left.empty()) refuse("the data is damaged: it has fewer values than the metadata says");
  ThriftReader reader(left, file->where);
  const PageHeader header = read_page_header(reader);
  left = left.subspan(reader.position());
  if (header.packed < 0 || header.unpacked < 0 ||
      static_cast<uint64_t>(header.packed) > left.size())
    refuse("the data is damaged: a page is longer than what is left");
  const Bytes body = left.first(static_cast<size_t>(header.packed));
  left = left.subspan(body.size());
  if (header.type == kDictionaryPage) {
    open_dictionary(header, body);
  } else if (header.type == kDataPage || header.type == kDataPageV2) {
    open_data(header, body);
  }  // others may be passed over
}

void ParquetColumn::State::open_dictionary(const PageHeader& header, Bytes body) {
  if (header.encoding != kPlain && header.encoding != kPlainDictionary)
    refuse(fmt::format("want a plain dictionary, got encoding {}", header.encoding));
  Bytes rest = unpacked(body, static_cast<uint64_t>(header.unpacked), dictionary_page);
  dictionary.clear();
  std::string_view text;
  for (int64_t i = 0; i < header.n_values; i++) {
    if (!take_text(rest, text)) refuse("the data is damaged: a dictionary ends too soon");
    dictionary.push_back(text);
  }
  has_dictionary = true;
}

// The definition levels at the front of a page, and where its values are.
Bytes ParquetColumn::State::take_levels(const PageHeader& header, Bytes body) {
  const auto size = static_cast<uint64_t>(header.unpacked);
  if (header.type == kDataPageV2) {
    const int64_t bytes = header.definition_bytes;
    if (header.repetition_bytes != 0 || bytes < 0 || static_cast<uint64_t>(bytes) > body.size() ||
        static_cast<uint64_t>(bytes) > size)
      refuse("the data is damaged: levels that do not fit their page");
    const auto n = static_cast<size_t>(bytes);
    levels = RleReader(body.first(n), 1);
    const Bytes values = body.subspan(n);
    if (!header.compressed) {
      page = {};
      return values;
    }
    return unpacked(values, size - n, page);
  }
  const Bytes all = unpacked(body, size, page);
  if (!column->optional) return all;
  if (header.level_encoding != kRle)
    refuse(fmt::format("want levels in runs, got encoding {}", header.level_encoding));
  uint32_t n = 0;
  if (all.size() >= sizeof n) std::memcpy(&n, all.data(), sizeof n);
  if (all.size() < sizeof n || n > all.size() - sizeof n)
    refuse("the data is damaged: levels that do not fit their page");
  levels = RleReader(all.subspan(sizeof n, n), 1);
  return all.subspan(sizeof n + n);
}

void ParquetColumn::State::open_data(const PageHeader& header, Bytes body) {
  if (header.n_values < 0 || static_cast<uint64_t>(header.n_values) > values_left)
    refuse("the data is damaged: it has more values than the metadata says");
  const Bytes values = take_levels(header, body);
  in_page = static_cast<uint64_t>(header.n_values);
  by_dictionary = header.encoding == kPlainDictionary || header.encoding == kRleDictionary;
  if (!by_dictionary && header.encoding != kPlain)
    refuse(
        fmt::format("want plain or dictionary encoding, got encoding {}: write the file anew "
                    "with one of them",
                    header.encoding));
  plain = values;
  if (!by_dictionary) return;
  if (!has_dictionary) refuse("the data is damaged: a page wants a dictionary that is not there");
  // A page of nulls alone may have no indices at all.
  const int width = values.empty() ? 0 : static_cast<int>(values.front());
  if (width > 32) refuse("the data is damaged: indices of more than 32 bits");
  indices = RleReader(values.empty() ? values : values.subspan(1), width);
}

bool ParquetColumn::State::next(std::optional<std::string_view>& value) {
  while (values_left == 0) {
    if (next_chunk == column->chunks.size()) return false;
    open_chunk();
  }
  while (in_page == 0) open_page();
  in_page--;
  values_left--;
  uint32_t level = 1;
  if (column->optional && !levels.next(level)) refuse("the data is damaged: levels end too soon");
  if (level == 0) {
    value = std::nullopt;
    return true;
  }
  std::string_view text;
  if (by_dictionary) {
    uint32_t index = 0;
    if (!indices.next(index)) refuse("the data is damaged: a page ends too soon");
    if (index >= dictionary.size())
      refuse(fmt::format("the data is damaged: index {} into a dictionary of {}", index,
                         dictionary.size()));
    text = dictionary[index];
  } else if (!take_text(plain, text)) {
    refuse("the data is damaged: a page ends too soon");
  }
  value = text;
  return true;
}

ParquetColumn::ParquetColumn(const ParquetFile& file, const std::string& name) {
  for (const ParquetColumnInfo& column : file.columns) {
    if (column.name != name) continue;
    if (!column.text)
      fail(fmt::format(
          "[parquet] {}: want text in the column {}, got numbers, a list or a structure",
          file.where, name));
    state_ = std::make_unique<State>(State{&file, &column});
    return;
  }
  fail(fmt::format("[parquet] {}: no column {}", file.where, name));
}

ParquetColumn::~ParquetColumn() = default;
ParquetColumn::ParquetColumn(ParquetColumn&&) noexcept = default;

bool ParquetColumn::next(std::optional<std::string_view>& value) {
  return state_->next(value);
}

}  // namespace tinyllama
