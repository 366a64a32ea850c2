// Documents out of the files that corpora come in: text, JSON Lines, JSON arrays, CSV and Parquet,
// plain or compressed. Two steps, so that the second can run on many threads: a RowSource cuts a
// file into batches of rows, a RowParser finds the document in a row.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tinyllama {

enum class CorpusFormat : uint8_t { text, jsonl, json, csv, parquet };
const std::vector<std::string>& corpus_formats();  // their names, in this order

// Keeps the rows where the field is (or is not) the value. A field that a row lacks, or null,
// equals nothing.
struct RowFilter {
  std::string field;  // "meta.redpajama_set_name": a path of names into a JSON object
  std::string value;
  bool equal = true;

  // From "field=value" or "field!=value". Throws Error when it is neither.
  static RowFilter parse(std::string_view text);
};

struct CorpusOptions {
  // Where the text is: the first of these that a row (of CSV and Parquet: the table) has. Dots lead
  // into JSON objects.
  std::vector<std::string> fields = {"text", "content"};
  std::vector<RowFilter> filters;      // a row must pass all of them
  std::string separator;               // a line that parts documents of a text file; empty: none
  std::optional<CorpusFormat> format;  // unset: by each file's name
  int standard_input = -1;             // the descriptor that "-" means
};

struct CorpusFile {
  std::string path;  // "-" is standard input
  CorpusFormat format = CorpusFormat::text;
  uint64_t bytes = 0;  // as stored; 0 for standard input
};

// The files that `inputs` name: files as given, folders searched through for files of known names,
// sorted by path. Throws Error for one that is missing, or whose name tells of no format (unless
// options.format does), and when there is none at all.
std::vector<CorpusFile> list_corpus(const std::vector<std::string>& inputs,
                                    const CorpusOptions& options);

// A row of a file, in its batch's bytes.
struct Row {
  size_t begin = 0, size = 0;
  uint64_t line = 0;            // from 1; of Parquet: the row's number
  const char* fault = nullptr;  // set: malformed before anyone parses it
  bool dropped = false;         // a filter has decided already
};

// Neighbouring rows of one file, about a megabyte of them or one that is longer.
struct RowBatch {
  CorpusFormat format = CorpusFormat::text;  // how a row is parsed; Parquet's are text
  std::string bytes;  // and kRowPadding more, so that a parser may look ahead
  std::vector<Row> rows;
  std::shared_ptr<const std::vector<std::string>> columns;  // of CSV
  uint64_t first_row = 0;                                   // counted over the file, from 0
  uint64_t position = 0;  // bytes of the file read when the batch was complete
};
inline constexpr size_t kRowPadding = 64;

class RowSource {
 public:
  virtual ~RowSource() = default;
  // The next batch, never an empty one; false at the end. Throws Error when the file cannot be read
  // or decompressed.
  virtual bool next(RowBatch& batch) = 0;
};

// Throws Error when a table lacks a column that `options` name.
std::unique_ptr<RowSource> open_rows(const CorpusFile& file, const CorpusOptions& options);

enum class RowKind : uint8_t { document, empty, filtered, malformed };

// Finds the document in a row. One per thread; it keeps memory between rows.
class RowParser {
 public:
  explicit RowParser(const CorpusOptions& options);
  ~RowParser();
  RowParser(RowParser&&) noexcept;

  struct Parsed {
    RowKind kind = RowKind::document;
    std::string_view text = {};  // of a document; valid until the next call and while the batch is
    std::string why = {};        // of a malformed row
  };
  // A document is valid UTF-8 with something besides white space in it.
  Parsed parse(const RowBatch& batch, const Row& row);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// "corpus.jsonl.zst:17", the way a row is named in messages.
std::string row_name(const CorpusFile& file, uint64_t line);

// Calls `use` for every document of the files, in order, on this thread, and `bad`, when there is
// one, for every malformed row with its name and what is wrong.
void for_documents(const std::vector<CorpusFile>& files, const CorpusOptions& options,
                   const std::function<void(std::string_view text)>& use,
                   const std::function<void(const std::string& row, const std::string& why)>& bad);

}  // namespace tinyllama
