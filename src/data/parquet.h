// Parquet files as corpora come in them: flat columns of text, which are read value by value, a
// page at a time. Plain and dictionary encodings, data pages of both versions, required and
// optional columns, uncompressed or by Snappy, gzip or zstd. Whatever a file says is checked before
// it is used. (Format: the Apache Parquet specification, parquet.thrift.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tinyllama {

struct ParquetChunk {  // of one column in one group of rows
  int codec = 0;
  uint64_t begin = 0, end = 0;  // its pages' bytes in the file
  uint64_t n_values = 0;
};

struct ParquetColumnInfo {
  std::string name;
  bool text = false;      // BYTE_ARRAY, in no list and no structure: readable
  bool optional = false;  // may hold nulls
  std::vector<ParquetChunk> chunks;
};

struct ParquetFile {
  std::span<const std::byte> bytes;  // the whole file; must outlive this
  std::string where;                 // its path, for messages
  uint64_t n_rows = 0;
  std::vector<ParquetColumnInfo> columns;  // top-level ones, in the file's order
};

// Reads the footer. Throws Error when it is not a Parquet file, or damaged.
ParquetFile parse_parquet(std::span<const std::byte> bytes, std::string where);

// The values of one column, from the first row on.
class ParquetColumn {
 public:
  // Throws Error when the file has no such column, or it is not one of text.
  ParquetColumn(const ParquetFile& file, const std::string& name);
  ~ParquetColumn();
  ParquetColumn(ParquetColumn&&) noexcept;

  // The next row's value, nullopt for a null; false behind the last row. The text is valid until
  // the next call. Throws Error when the data is damaged, or in an encoding that is not known.
  bool next(std::optional<std::string_view>& value);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tinyllama
