// Where the rows of a text format end: each splitter looks at the bytes that have arrived so far
// and tells the next row, or that it needs more. None copies or keeps bytes, so a corpus of any
// size passes in the memory of its longest row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tinyllama {

// Bytes [begin, end) are the row; the next one is looked for from `next` on.
struct RowPiece {
  size_t begin = 0, end = 0, next = 0;
  bool blank = false;           // an empty line or the like: no row at all
  const char* fault = nullptr;  // why this, and all behind it, cannot be split into rows
};

class Splitter {
 public:
  virtual ~Splitter() = default;
  // The first row of `bytes` from `from` on. False when more bytes are needed or, with `last` (no
  // more will come), when there is none. Called again with the same `from`, and more bytes, after
  // false; with the piece's `next` after true.
  virtual bool find(std::string_view bytes, size_t from, bool last, RowPiece& piece) = 0;
};

// The whole input is one row.
std::unique_ptr<Splitter> split_nothing();
// A row is a line; blank lines are none.
std::unique_ptr<Splitter> split_lines();
// A row is what stands between lines that consist of `separator`.
std::unique_ptr<Splitter> split_at_lines(std::string separator);
// A row is an element of the array that the input is, or, where it does not start with '[', one of
// several values behind each other.
std::unique_ptr<Splitter> split_json();
// A row is a record of RFC 4180, in which line breaks may be quoted.
std::unique_ptr<Splitter> split_csv();

// The fields of one record, unquoted. Null, or what is wrong with it.
const char* parse_csv_record(std::string_view record, std::vector<std::string>& fields);

}  // namespace tinyllama
