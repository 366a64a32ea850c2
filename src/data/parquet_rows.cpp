// Rows of Parquet files, see parquet_rows.h.
#include "data/parquet_rows.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "data/parquet.h"

namespace tinyllama {
namespace {

constexpr size_t kBatchBytes = size_t{1} << 20, kBatchRows = size_t{1} << 16;

class ParquetRows : public RowSource {
 public:
  ParquetRows(const CorpusFile& file, const CorpusOptions& options)
      : filters_(options.filters),
        mapped_(file.path),
        parquet_(parse_parquet(mapped_.bytes(), file.path)),
        text_(parquet_, text_column(options)) {
    for (const RowFilter& filter : filters_) columns_.emplace_back(parquet_, filter.field);
  }

  bool next(RowBatch& batch) override {
    batch = {.format = CorpusFormat::parquet, .first_row = n_rows_};
    std::optional<std::string_view> text;
    while (batch.bytes.size() < kBatchBytes && batch.rows.size() < kBatchRows && text_.next(text)) {
      Row row = {.begin = batch.bytes.size(), .line = n_rows_ + batch.rows.size() + 1};
      row.dropped = !passes();
      if (text && !row.dropped) {
        row.size = text->size();
        batch.bytes += *text;
      }
      batch.rows.push_back(row);
    }
    batch.bytes.append(kRowPadding, '\0');
    n_rows_ += batch.rows.size();
    // As if rows were of one size.
    const double part = parquet_.n_rows == 0
                            ? 1
                            : static_cast<double>(n_rows_) / static_cast<double>(parquet_.n_rows);
    batch.position = static_cast<uint64_t>(part * static_cast<double>(mapped_.size()));
    return !batch.rows.empty();
  }

 private:
  std::string text_column(const CorpusOptions& options) const {
    std::vector<std::string> names;
    for (const ParquetColumnInfo& column : parquet_.columns) names.push_back(column.name);
    for (const std::string& name : options.fields)
      if (std::find(names.begin(), names.end(), name) != names.end()) return name;
    fail(fmt::format("[corpus] {}: want a column {}, got {}: name the one with the text (--field)",
                     parquet_.where, fmt::join(options.fields, " or "), fmt::join(names, ", ")));
  }

  // Reads a value of every filter's column, whether or not one has decided.
  bool passes() {
    bool good = true;
    std::optional<std::string_view> value;
    for (size_t i = 0; i < filters_.size(); i++) {
      columns_[i].next(value);
      good &= (value.has_value() && *value == filters_[i].value) == filters_[i].equal;
    }
    return good;
  }

  std::vector<RowFilter> filters_;
  MappedFile mapped_;
  ParquetFile parquet_;
  ParquetColumn text_;
  std::vector<ParquetColumn> columns_;  // of the filters
  uint64_t n_rows_ = 0;
};

}  // namespace

std::unique_ptr<RowSource> open_parquet_rows(const CorpusFile& file, const CorpusOptions& options) {
  return std::make_unique<ParquetRows>(file, options);
}

}  // namespace tinyllama
