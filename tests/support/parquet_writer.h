// Writes Parquet files of one column of text, in every way that the reader knows: for its tests,
// and as seeds of its fuzzing.
#pragma once

#include <snappy.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

namespace tinyllama::testing {

using ParquetValue = std::optional<std::string>;
using ParquetValues = std::vector<ParquetValue>;

inline void put_varint(std::string& to, uint64_t value) {
  for (; value >= 0x80; value >>= 7) to += static_cast<char>(value | 0x80);
  to += static_cast<char>(value);
}

// A structure of Thrift's compact protocol.
class ThriftStruct {
 public:
  ThriftStruct& number(int id, int64_t value, int type = 5) {
    head(id, type);
    put_varint(bytes_, static_cast<uint64_t>(value) << 1 ^ static_cast<uint64_t>(value >> 63));
    return *this;
  }
  ThriftStruct& boolean(int id, bool value) {
    head(id, value ? 1 : 2);
    return *this;
  }
  ThriftStruct& text(int id, const std::string& value) {
    head(id, 8);
    put_varint(bytes_, value.size());
    bytes_ += value;
    return *this;
  }
  ThriftStruct& list(int id, const std::vector<ThriftStruct>& values) {
    head(id, 9);
    bytes_ += static_cast<char>(0xfc);
    put_varint(bytes_, values.size());
    for (const ThriftStruct& value : values) bytes_ += value.end();
    return *this;
  }
  ThriftStruct& inner(int id, const ThriftStruct& value) {
    head(id, 12);
    bytes_ += value.end();
    return *this;
  }
  std::string end() const { return bytes_ + '\0'; }

 private:
  void head(int id, int type) {
    bytes_ += static_cast<char>((id - last_) << 4 | type);
    last_ = id;
  }
  std::string bytes_;
  int last_ = 0;
};

inline std::string raw32(uint32_t value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

inline std::string gzip(const std::string& text) {
  z_stream stream = {};
  ::deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(text.size() + 100, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  ::deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

inline std::string pack(int codec, const std::string& text) {
  std::string out;
  if (codec == 0 || codec > 6) return text;
  if (codec == 2) return gzip(text);
  if (codec == 1) {
    snappy::Compress(text.data(), text.size(), &out);
    return out;
  }
  out.resize(::ZSTD_compressBound(text.size()));
  out.resize(::ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

// Numbers as bit-packed groups of eight.
inline std::string bit_packed(const std::vector<uint32_t>& values, int width) {
  const size_t groups = (values.size() + 7) / 8;
  std::string out;
  put_varint(out, groups << 1 | 1);
  std::string bits(groups * static_cast<size_t>(width), '\0');
  for (size_t i = 0; i < values.size(); i++)
    for (size_t b = 0; b < static_cast<size_t>(width); b++)
      if ((values[i] >> b & 1U) != 0) {
        const size_t at = i * static_cast<size_t>(width) + b;
        bits[at / 8] = static_cast<char>(bits[at / 8] | 1 << at % 8);
      }
  return out + bits;
}

struct ParquetShape {
  int codec = 0;
  bool optional = true, dictionary = false, version2 = false, runs = false;
};

class ParquetWriter {
 public:
  explicit ParquetWriter(const ParquetShape& shape) : shape_(shape) {}

  // One group of rows, in pages of 3 values.
  void group(const ParquetValues& values) {
    const size_t begin = file_.size();
    std::vector<std::string> words;
    for (const ParquetValue& value : values)
      if (shape_.dictionary && value && index_of(words, *value) == words.size())
        words.push_back(*value);
    if (shape_.dictionary) dictionary(words);
    const size_t data = file_.size();
    for (size_t at = 0; at < values.size(); at += 3)
      page({values.begin() + static_cast<ptrdiff_t>(at),
            values.begin() + static_cast<ptrdiff_t>(std::min(at + 3, values.size()))},
           words);
    ThriftStruct meta;
    meta.number(1, 6).number(4, shape_.codec).number(5, static_cast<int64_t>(values.size()), 6);
    meta.number(6, 1000, 6).number(7, static_cast<int64_t>(file_.size() - begin), 6);
    meta.number(9, static_cast<int64_t>(data), 6);
    if (shape_.dictionary) meta.number(11, static_cast<int64_t>(begin), 6);
    ThriftStruct number;  // a column of numbers in front, which nobody reads
    number.number(1, 1).number(4, 0).number(5, 99, 6).number(7, 1 << 30, 6).number(9, 1 << 30, 6);
    ThriftStruct group;
    group.list(1, {ThriftStruct().number(2, 0, 6).inner(3, number),
                   ThriftStruct().number(2, 0, 6).inner(3, meta)});
    group.number(2, 1000, 6).number(3, static_cast<int64_t>(values.size()), 6);
    groups_.push_back(group);
    rows_ += static_cast<int64_t>(values.size());
  }

  std::string finish() {
    ThriftStruct footer;
    footer.number(1, 1);
    footer.list(2,
                {ThriftStruct().text(4, "schema").number(5, 2),
                 ThriftStruct().number(1, 1).number(3, 1).text(4, "id"),
                 ThriftStruct().number(1, 6).number(3, shape_.optional ? 1 : 0).text(4, "text")});
    footer.number(3, rows_, 6).list(4, groups_).text(6, "a test");
    const std::string bytes = footer.end();
    return file_ + bytes + raw32(static_cast<uint32_t>(bytes.size())) + "PAR1";
  }

 private:
  static size_t index_of(const std::vector<std::string>& words, const std::string& word) {
    return static_cast<size_t>(std::find(words.begin(), words.end(), word) - words.begin());
  }

  void add_page(ThriftStruct header, int64_t unpacked, const std::string& body, int kind_id,
                const ThriftStruct& kind, int64_t type) {
    header.number(1, type).number(2, unpacked).number(3, static_cast<int64_t>(body.size()));
    header.inner(kind_id, kind);
    file_ += header.end() + body;
  }

  void dictionary(const std::vector<std::string>& words) {
    std::string body;
    for (const std::string& word : words) body += raw32(static_cast<uint32_t>(word.size())) + word;
    ThriftStruct kind;
    kind.number(1, static_cast<int64_t>(words.size())).number(2, shape_.version2 ? 0 : 2);
    add_page({}, static_cast<int64_t>(body.size()), pack(shape_.codec, body), 7, kind, 2);
  }

  void page(const ParquetValues& values, const std::vector<std::string>& words) {
    std::vector<uint32_t> present, indices;
    std::string body;
    for (const ParquetValue& value : values) {
      present.push_back(value ? 1 : 0);
      if (!value) continue;
      indices.push_back(static_cast<uint32_t>(index_of(words, *value)));
      body += raw32(static_cast<uint32_t>(value->size())) + *value;
    }
    if (shape_.dictionary) {
      if (shape_.runs) {  // each index a run of one
        body = "\x09";
        for (const uint32_t index : indices) {
          put_varint(body, 1 << 1);
          body += static_cast<char>(index & 255);
          body += static_cast<char>(index >> 8);
        }
      } else {
        body = "\x05" + bit_packed(indices, 5);
      }
    }
    std::string levels = shape_.optional ? bit_packed(present, 1) : "";
    const int64_t n = static_cast<int64_t>(values.size());
    const int encoding = !shape_.dictionary ? 0 : shape_.version2 ? 8 : 2;
    ThriftStruct kind;
    if (shape_.version2) {
      kind.number(1, n).number(2, n - static_cast<int64_t>(indices.size())).number(3, n);
      kind.number(4, encoding).number(5, static_cast<int64_t>(levels.size())).number(6, 0);
      if (shape_.codec == 0) kind.boolean(7, false);
      add_page({}, static_cast<int64_t>(levels.size() + body.size()),
               levels + pack(shape_.codec, body), 8, kind, 3);
    } else {
      if (shape_.optional) body = raw32(static_cast<uint32_t>(levels.size())) + levels + body;
      kind.number(1, n).number(2, encoding).number(3, 3).number(4, 3);
      add_page({}, static_cast<int64_t>(body.size()), pack(shape_.codec, body), 5, kind, 0);
    }
  }

  ParquetShape shape_;
  std::string file_ = "PAR1";
  std::vector<ThriftStruct> groups_;
  int64_t rows_ = 0;
};

}  // namespace tinyllama::testing
