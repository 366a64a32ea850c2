// The footer of a Parquet file, see parquet.h.
#include "data/parquet.h"

#include <fmt/format.h>

#include <cstring>

#include "base/error.h"
#include "data/thrift.h"

namespace tinyllama {
namespace {

using Field = ThriftReader::Field;

constexpr std::string_view kMagic = "PAR1", kEncrypted = "PARE";
constexpr int kByteArray = 6, kOptional = 1, kRepeated = 2;

struct SchemaElement {
  int type = -1, repetition = 0;
  int64_t n_children = 0;
  std::string name;
};

struct ChunkMeta {
  int type = -1, codec = -1;
  int64_t n_values = -1, compressed = -1, data_page = -1, dictionary_page = -1;
  bool elsewhere = false;  // in another file
};

struct RowGroup {
  int64_t n_rows = -1;
  std::vector<ChunkMeta> chunks;
};

// Reads an integer field into `to`; false when the field is another one.
template <class Int>
bool read_int(ThriftReader& reader, const Field& field, int id, Int& to) {
  if (field.id != id || !ThriftReader::is_int(field.type)) return false;
  to = static_cast<Int>(reader.int_value());
  return true;
}

SchemaElement read_schema_element(ThriftReader& reader) {
  SchemaElement element;
  reader.structure([&](const Field& field) {
    if (field.id == 4 && field.type == ThriftReader::kString) {
      element.name = reader.string_value();
      return true;
    }
    return read_int(reader, field, 1, element.type) ||
           read_int(reader, field, 3, element.repetition) ||
           read_int(reader, field, 5, element.n_children);
  });
  return element;
}

ChunkMeta read_chunk(ThriftReader& reader) {
  ChunkMeta chunk;
  reader.structure([&](const Field& field) {
    chunk.elsewhere |= field.id == 1;
    if (field.id != 3 || field.type != ThriftReader::kStruct) return false;
    reader.structure([&](const Field& meta) {
      return read_int(reader, meta, 1, chunk.type) || read_int(reader, meta, 4, chunk.codec) ||
             read_int(reader, meta, 5, chunk.n_values) ||
             read_int(reader, meta, 7, chunk.compressed) ||
             read_int(reader, meta, 9, chunk.data_page) ||
             read_int(reader, meta, 11, chunk.dictionary_page);
    });
    return true;
  });
  return chunk;
}

RowGroup read_row_group(ThriftReader& reader) {
  RowGroup group;
  reader.structure([&](const Field& field) {
    if (field.id == 1 && field.type == ThriftReader::kList) {
      reader.list(ThriftReader::kStruct, [&] { group.chunks.push_back(read_chunk(reader)); });
      return true;
    }
    return read_int(reader, field, 3, group.n_rows);
  });
  return group;
}

struct Footer {
  int64_t n_rows = -1;
  std::vector<SchemaElement> schema;
  std::vector<RowGroup> groups;
};

Footer read_footer(ThriftReader& reader) {
  Footer footer;
  reader.structure([&](const Field& field) {
    const bool list = field.type == ThriftReader::kList;
    if (field.id == 2 && list) {
      reader.list(ThriftReader::kStruct,
                  [&] { footer.schema.push_back(read_schema_element(reader)); });
      return true;
    }
    if (field.id == 4 && list) {
      reader.list(ThriftReader::kStruct, [&] { footer.groups.push_back(read_row_group(reader)); });
      return true;
    }
    return read_int(reader, field, 3, footer.n_rows);
  });
  return footer;
}

class FooterChecker {
 public:
  FooterChecker(const Footer& footer, uint64_t data_end, ParquetFile& file)
      : footer_(footer), data_end_(data_end), file_(file) {}

  void run() {
    if (footer_.schema.empty() || footer_.n_rows < 0) refuse("no schema or no number of rows");
    add_columns();
    uint64_t rows = 0;
    for (const RowGroup& group : footer_.groups) {
      if (group.n_rows < 0 || group.n_rows > footer_.n_rows || group.chunks.size() != n_leaves_)
        refuse("a group of rows that does not fit the schema");
      rows += static_cast<uint64_t>(group.n_rows);  // both below 2^63
      if (rows > static_cast<uint64_t>(footer_.n_rows)) break;
      for (size_t i = 0; i < file_.columns.size(); i++)
        if (file_.columns[i].text) add_chunk(group, group.chunks[leaf_[i]], file_.columns[i]);
    }
    file_.n_rows = static_cast<uint64_t>(footer_.n_rows);
    if (rows != file_.n_rows) refuse("groups of rows that do not add up to the file's rows");
  }

 private:
  // The schema is a tree, written parents first. Element 0 is the root.
  void add_columns() {
    const size_t n = footer_.schema.size();
    for (size_t at = 1; at < n;) {
      const SchemaElement& element = footer_.schema[at];
      ParquetColumnInfo column;
      column.name = element.name;
      column.optional = element.repetition == kOptional;
      column.text =
          element.n_children == 0 && element.type == kByteArray && element.repetition != kRepeated;
      file_.columns.push_back(std::move(column));
      leaf_.push_back(n_leaves_);
      // Past the element and all below it.
      for (uint64_t open = 1; open > 0; at++) {
        if (at >= n) refuse("a schema that is cut off");
        const int64_t children = footer_.schema[at].n_children;
        if (children < 0 || static_cast<uint64_t>(children) > n)
          refuse("an element of the schema with too many children");
        open += static_cast<uint64_t>(children) - 1;
        n_leaves_ += children == 0 ? 1 : 0;
      }
    }
  }

  void add_chunk(const RowGroup& group, const ChunkMeta& chunk, ParquetColumnInfo& column) const {
    if (chunk.elsewhere)
      fail(fmt::format("[parquet] {}: the column {} is in another file, which is not supported",
                       file_.where, column.name));
    int64_t begin = chunk.data_page;
    if (chunk.dictionary_page > 0 && chunk.dictionary_page < begin) begin = chunk.dictionary_page;
    if (chunk.type != kByteArray || chunk.n_values != group.n_rows || begin < 0 ||
        chunk.compressed < 0 || static_cast<uint64_t>(begin) > data_end_ ||
        static_cast<uint64_t>(chunk.compressed) > data_end_ - static_cast<uint64_t>(begin))
      refuse("a part of the column " + column.name + " that is not in the file");
    const auto first = static_cast<uint64_t>(begin);
    column.chunks.push_back({chunk.codec, first, first + static_cast<uint64_t>(chunk.compressed),
                             static_cast<uint64_t>(chunk.n_values)});
  }

  [[noreturn]] void refuse(const std::string& got) const {
    fail(fmt::format("[parquet] {}: the metadata is damaged: it tells of {}", file_.where, got));
  }

  const Footer& footer_;
  uint64_t data_end_;
  ParquetFile& file_;
  std::vector<size_t> leaf_;  // of each column, the first of its leaves
  size_t n_leaves_ = 0;
};

}  // namespace

ParquetFile parse_parquet(std::span<const std::byte> bytes, std::string where) {
  ParquetFile file;
  file.bytes = bytes;
  file.where = std::move(where);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.ends_with(kEncrypted))
    fail(fmt::format("[parquet] {}: it is encrypted, which is not supported", file.where));
  if (text.size() < 12 || !text.starts_with(kMagic) || !text.ends_with(kMagic))
    fail(
        fmt::format("[parquet] {}: want a Parquet file, which starts and ends with PAR1, got {} "
                    "bytes that do not: it is truncated or something else",
                    file.where, text.size()));
  uint32_t size = 0;
  std::memcpy(&size, bytes.data() + bytes.size() - 8, sizeof size);
  if (size > bytes.size() - 12)
    fail(
        fmt::format("[parquet] {}: want metadata of {} bytes at the end, got a file of {}: it is "
                    "truncated or damaged",
                    file.where, size, bytes.size()));
  const size_t begin = bytes.size() - 8 - size;
  ThriftReader reader(bytes.subspan(begin, size), file.where);
  const Footer footer = read_footer(reader);
  FooterChecker(footer, begin, file).run();
  return file;
}

}  // namespace tinyllama
