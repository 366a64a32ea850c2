// Finding files and cutting them into rows, see corpus.h.
#include "data/corpus.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "data/byte_source.h"
#include "data/parquet_rows.h"
#include "data/splitter.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBatch = size_t{1} << 20;
constexpr size_t kRead = size_t{1} << 18;
constexpr size_t kMaxRow = size_t{1} << 30;

// By the name without ".gz" and ".zst".
std::optional<CorpusFormat> format_of(const std::string& path) {
  std::string name = path;
  for (const char* suffix : {".gz", ".zst"})
    if (name.ends_with(suffix)) name.resize(name.size() - std::strlen(suffix));
  const bool compressed = name != path;
  if (name.ends_with(".txt") || name.ends_with(".md")) return CorpusFormat::text;
  if (name.ends_with(".jsonl") || name.ends_with(".ndjson")) return CorpusFormat::jsonl;
  if (name.ends_with(".json")) return CorpusFormat::json;
  if (name.ends_with(".csv")) return CorpusFormat::csv;
  if (name.ends_with(".parquet") && !compressed) return CorpusFormat::parquet;
  return std::nullopt;
}

constexpr const char* kKnownNames =
    ".txt, .md, .jsonl, .ndjson, .json, .csv (also .gz and .zst of them) or .parquet";

void search_folder(const std::string& folder, const CorpusOptions& options,
                   std::vector<CorpusFile>& files) {
  std::error_code code;
  std::vector<CorpusFile> found;
  for (fs::recursive_directory_iterator it(folder, code), end; !code && it != end;
       it.increment(code)) {
    const std::string name = it->path().filename();
    if (name.starts_with('.')) {
      if (it->is_directory(code)) it.disable_recursion_pending();
      continue;
    }
    const auto by_name = format_of(name);
    if (!it->is_regular_file(code) || !by_name) continue;
    found.push_back({it->path(), options.format.value_or(*by_name), it->file_size(code)});
  }
  if (code) fail(fmt::format("[corpus] {}: {}", folder, code.message()));
  if (found.empty())
    fail(fmt::format("[corpus] {}: want files named {} in it, got none", folder, kKnownNames));
  std::sort(found.begin(), found.end(),
            [](const CorpusFile& a, const CorpusFile& b) { return a.path < b.path; });
  std::move(found.begin(), found.end(), std::back_inserter(files));
}

std::unique_ptr<Splitter> splitter_for(CorpusFormat format, const CorpusOptions& options) {
  switch (format) {
    case CorpusFormat::text:
      return options.separator.empty() ? split_nothing() : split_at_lines(options.separator);
    case CorpusFormat::jsonl:
      return split_lines();
    case CorpusFormat::json:
      return split_json();
    case CorpusFormat::csv:
      return split_csv();
    case CorpusFormat::parquet:
      break;
  }
  TL_CHECK(false);
  return nullptr;
}

// A table must have the column of the text and those of the filters.
void check_columns(const CorpusFile& file, const std::vector<std::string>& columns,
                   const CorpusOptions& options) {
  const auto has = [&](const std::string& name) {
    return std::find(columns.begin(), columns.end(), name) != columns.end();
  };
  const std::string got = fmt::format("{}", fmt::join(columns, ", "));
  if (std::none_of(options.fields.begin(), options.fields.end(), has))
    fail(fmt::format("[corpus] {}: want a column {}, got {}: name the one with the text (--field)",
                     file.path, fmt::join(options.fields, " or "), got));
  for (const RowFilter& filter : options.filters)
    if (!has(filter.field))
      fail(fmt::format("[corpus] {}: want a column {} for the filter, got {}", file.path,
                       filter.field, got));
}

// Rows of a format that a Splitter knows.
class SplitRows : public RowSource {
 public:
  SplitRows(const CorpusFile& file, const CorpusOptions& options)
      : file_(file), options_(options), splitter_(splitter_for(file.format, options)) {
    if (file.path == "-") {
      source_ = std::make_unique<ByteSource>(options.standard_input, "standard input");
    } else {
      source_ = std::make_unique<ByteSource>(file.path);
    }
  }

  bool next(RowBatch& batch) override {
    batch = {.format = file_.format, .first_row = n_rows_};
    size_t from = 0;
    while (!ended_ && (from < kBatch || batch.rows.empty())) {
      RowPiece piece;
      if (splitter_->find(buffer_, from, at_end_, piece)) {
        take(piece, from, batch);
      } else if (at_end_) {
        ended_ = true;
      } else if (buffer_.size() - from > kMaxRow) {
        take({.begin = from, .end = from, .next = from, .fault = "a row of more than 1 GiB"}, from,
             batch);
      } else {
        read_more();
      }
    }
    std::string rest = buffer_.substr(from);
    batch.bytes = std::move(buffer_);
    batch.bytes.resize(from);
    batch.bytes.append(kRowPadding, '\0');
    buffer_ = std::move(rest);
    batch.columns = columns_;
    batch.position = source_->position();
    n_rows_ += batch.rows.size();
    return !batch.rows.empty();
  }

 private:
  void read_more() {
    const size_t before = buffer_.size();
    buffer_.resize(before + kRead);
    const size_t n = source_->read(std::span(buffer_).subspan(before));
    buffer_.resize(before + n);
    at_end_ = n == 0;
    if (!started_ && (buffer_.size() >= 3 || at_end_)) {
      started_ = true;
      if (buffer_.starts_with("\xEF\xBB\xBF")) buffer_.erase(0, 3);  // a byte order mark
    }
  }

  uint64_t lines_in(size_t begin, size_t end) const {
    return static_cast<uint64_t>(std::count(buffer_.begin() + static_cast<ptrdiff_t>(begin),
                                            buffer_.begin() + static_cast<ptrdiff_t>(end), '\n'));
  }

  void take(const RowPiece& piece, size_t& from, RowBatch& batch) {
    const uint64_t line = line_ + lines_in(from, piece.begin);
    line_ = line + lines_in(piece.begin, piece.next);
    from = piece.next;
    ended_ = piece.fault != nullptr;
    if (piece.blank) return;
    if (file_.format == CorpusFormat::csv && columns_ == nullptr && !ended_) {
      read_header(std::string_view(buffer_).substr(piece.begin, piece.end - piece.begin), line);
    } else {
      batch.rows.push_back({piece.begin, piece.end - piece.begin, line, piece.fault});
    }
  }

  void read_header(std::string_view record, uint64_t line) {
    auto columns = std::make_shared<std::vector<std::string>>();
    const char* fault = parse_csv_record(record, *columns);
    if (fault != nullptr)
      fail(fmt::format("[corpus] {}: the header: {}", row_name(file_, line), fault));
    check_columns(file_, *columns, options_);
    columns_ = std::move(columns);
  }

  CorpusFile file_;
  const CorpusOptions& options_;
  std::unique_ptr<Splitter> splitter_;
  std::unique_ptr<ByteSource> source_;
  std::string buffer_;  // starts where the next batch does
  std::shared_ptr<const std::vector<std::string>> columns_;
  uint64_t line_ = 1, n_rows_ = 0;
  bool started_ = false, at_end_ = false, ended_ = false;
};

}  // namespace

const std::vector<std::string>& corpus_formats() {
  static const std::vector<std::string> names = {"text", "jsonl", "json", "csv", "parquet"};
  return names;
}

RowFilter RowFilter::parse(std::string_view text) {
  const size_t equals = text.find('=');
  const bool not_equal = equals != std::string_view::npos && equals > 0 && text[equals - 1] == '!';
  const size_t end = not_equal ? equals - 1 : equals;
  if (equals == std::string_view::npos || end == 0)
    fail(fmt::format("[corpus] filter '{}': want FIELD=VALUE or FIELD!=VALUE", text));
  return {std::string(text.substr(0, end)), std::string(text.substr(equals + 1)), !not_equal};
}

std::vector<CorpusFile> list_corpus(const std::vector<std::string>& inputs,
                                    const CorpusOptions& options) {
  std::vector<CorpusFile> files;
  for (const std::string& input : inputs) {
    std::error_code code;
    if (input == "-") {
      if (options.format == CorpusFormat::parquet)
        fail("[corpus] standard input: Parquet starts at its end: give a file");
      files.push_back({input, options.format.value_or(CorpusFormat::text), 0});
    } else if (fs::is_directory(input, code)) {
      search_folder(input, options, files);
    } else {
      const auto format = options.format ? options.format : format_of(input);
      const uint64_t bytes = fs::file_size(input, code);
      if (code) fail(fmt::format("[corpus] {}: {}", input, code.message()));
      if (!format)
        fail(fmt::format("[corpus] {}: want a name that ends in {}; or say what it is (--format)",
                         input, kKnownNames));
      files.push_back({input, *format, bytes});
    }
  }
  if (files.empty()) fail("[corpus] want a file, a folder or - for standard input");
  return files;
}

std::unique_ptr<RowSource> open_rows(const CorpusFile& file, const CorpusOptions& options) {
  if (file.format == CorpusFormat::text && !options.filters.empty())
    fail(fmt::format("[corpus] {}: a text file has no fields to filter by", file.path));
  if (file.format != CorpusFormat::parquet) return std::make_unique<SplitRows>(file, options);
  return open_parquet_rows(file, options);
}

std::string row_name(const CorpusFile& file, uint64_t line) {
  return fmt::format("{}:{}", file.path == "-" ? "standard input" : file.path, line);
}

void for_documents(const std::vector<CorpusFile>& files, const CorpusOptions& options,
                   const std::function<void(std::string_view)>& use,
                   const std::function<void(const std::string&, const std::string&)>& bad) {
  RowParser parser(options);
  RowBatch batch;
  for (const CorpusFile& file : files) {
    const auto rows = open_rows(file, options);
    while (rows->next(batch)) {
      for (const Row& row : batch.rows) {
        const RowParser::Parsed parsed = parser.parse(batch, row);
        if (parsed.kind == RowKind::document) use(parsed.text);
        if (parsed.kind == RowKind::malformed && bad) bad(row_name(file, row.line), parsed.why);
      }
    }
  }
}

}  // namespace tinyllama
