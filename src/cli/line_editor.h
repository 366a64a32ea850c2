// Reads what a person types, line by line: with editing and history on a terminal, plainly from a
// pipe.
#pragma once

#include <memory>
#include <string>

namespace tinyllama::cli {

class LineEditor {
 public:
  enum class Result { line, end, interrupted };  // end: Ctrl-D or the end of the input

  // History is kept in `history_path`, for its owner only; empty: it lasts as long as the program.
  explicit LineEditor(std::string history_path);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // Reads one line, without its end, into `line`. A line that ends with a backslash goes on in the
  // next.
  Result read(std::string& line);
  bool interactive() const;

 private:
  struct Terminal;
  Result read_one(std::string& line);

  std::unique_ptr<Terminal> terminal_;  // null when standard input is no terminal
};

}  // namespace tinyllama::cli
