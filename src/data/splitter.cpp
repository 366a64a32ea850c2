// The splitters, see splitter.h. Each remembers in `looked_` how many bytes from `from` on it has
// seen, so that a long row is looked at once.
#include "data/splitter.h"

namespace tinyllama {
namespace {

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

std::string_view without_end(std::string_view text, std::string_view characters) {
  const size_t last = text.find_last_not_of(characters);
  return text.substr(0, last == std::string_view::npos ? 0 : last + 1);
}

class WholeSplitter : public Splitter {
 public:
  bool find(std::string_view bytes, size_t from, bool last, RowPiece& piece) override {
    if (!last || found_) return false;
    found_ = true;
    piece = {.begin = from, .end = bytes.size(), .next = bytes.size()};
    return true;
  }

 private:
  bool found_ = false;
};

class LineSplitter : public Splitter {
 public:
  bool find(std::string_view bytes, size_t from, bool last, RowPiece& piece) override {
    const size_t end = bytes.find('\n', from + looked_);
    looked_ = bytes.size() - from;
    if (end == std::string_view::npos && (!last || from == bytes.size())) return false;
    looked_ = 0;
    const size_t size = end == std::string_view::npos ? bytes.size() - from : end - from;
    const std::string_view line = without_end(bytes.substr(from, size), " \t\r");
    piece = {.begin = from, .end = from + line.size(), .next = from + size, .blank = line.empty()};
    if (end != std::string_view::npos) piece.next++;
    return true;
  }

 private:
  size_t looked_ = 0;
};

class SeparatorSplitter : public Splitter {
 public:
  explicit SeparatorSplitter(std::string separator) : separator_(std::move(separator)) {}

  bool find(std::string_view bytes, size_t from, bool last, RowPiece& piece) override {
    while (from + looked_ < bytes.size()) {
      const size_t line = from + looked_;
      const size_t end = bytes.find('\n', line);
      if (end == std::string_view::npos && !last) return false;
      const size_t next = end == std::string_view::npos ? bytes.size() : end + 1;
      if (without_end(bytes.substr(line, next - line), " \t\r\n") == separator_)
        return found(bytes, from, line, next, piece);
      looked_ = next - from;
    }
    if (!last || from == bytes.size()) return false;
    return found(bytes, from, bytes.size(), bytes.size(), piece);
  }

 private:
  // The line break before the separator belongs to it.
  bool found(std::string_view bytes, size_t from, size_t end, size_t next, RowPiece& piece) {
    looked_ = 0;
    if (end > from && end < bytes.size() && bytes[end - 1] == '\n') end--;
    if (end > from && end < bytes.size() && bytes[end - 1] == '\r') end--;
    const bool blank = without_end(bytes.substr(from, end - from), " \t\r\n").empty();
    piece = {.begin = from, .end = end, .next = next, .blank = blank};
    return true;
  }

  std::string separator_;
  size_t looked_ = 0;
};

class JsonSplitter : public Splitter {
 public:
  bool find(std::string_view bytes, size_t from, bool last, RowPiece& piece) override {
    for (; from + looked_ < bytes.size(); looked_++) {
      const size_t at = from + looked_;
      const char c = bytes[at];
      if (state_ == State::value) {
        const size_t end = value_end(c, at);
        if (end != 0) return found(from, end, piece);
      } else if (!is_space(c)) {
        if (const char* fault = between(c)) return broken(at, bytes.size(), fault, piece);
      }
    }
    if (!last) return false;
    if (state_ == State::value) return found(from, bytes.size(), piece);
    if (array_ && state_ != State::closed) {
      return broken(from, bytes.size(), "the array is not closed: the file is truncated", piece);
    }
    return false;
  }

 private:
  enum class State { begin, first, wanted, value, after, closed };

  // One character inside a value; where it ends, or 0.
  size_t value_end(char c, size_t at) {
    if (in_string_) {
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else {
        in_string_ = c != '"';
      }
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      depth_++;
    } else if (depth_ > 0) {
      if ((c == '}' || c == ']') && --depth_ == 0) return at + 1;
    } else if (c == ',' || c == ']' || is_space(c)) {
      return at;  // behind a number or the like
    }
    return 0;
  }

  // A character outside values; what is wrong with it, or null.
  const char* between(char c) {
    const bool opens = state_ == State::begin && c == '[';
    if (opens) {
      array_ = true;
      state_ = State::first;
    } else if (state_ == State::closed) {
      return "something follows the end of the array";
    } else if (array_ && c == ']' && state_ != State::wanted) {
      state_ = State::closed;
    } else if (array_ && state_ == State::after) {
      if (c != ',') return "want a comma between the elements of the array";
      state_ = State::wanted;
    } else if (c == ',' || c == ']') {
      return "want a value here";
    } else {
      state_ = State::value;
      start_ = looked_;
      value_end(c, 0);
    }
    return nullptr;
  }

  bool found(size_t from, size_t end, RowPiece& piece) {
    piece = {.begin = from + start_, .end = end, .next = end};
    looked_ = 0;
    depth_ = 0;
    in_string_ = escaped_ = false;
    state_ = State::after;
    return true;
  }

  bool broken(size_t at, size_t end, const char* fault, RowPiece& piece) {
    state_ = State::closed;
    piece = {.begin = at, .end = at, .next = end, .fault = fault};
    return true;
  }

  State state_ = State::begin;
  bool array_ = false, in_string_ = false, escaped_ = false;
  size_t looked_ = 0, start_ = 0, depth_ = 0;
};

class CsvSplitter : public Splitter {
 public:
  bool find(std::string_view bytes, size_t from, bool last, RowPiece& piece) override {
    for (; from + looked_ < bytes.size(); looked_++) {
      const char c = bytes[from + looked_];
      if (state_ == State::quoted) {
        if (c == '"') state_ = State::after_quote;
      } else if (c == '\n') {
        return found(bytes, from, from + looked_, piece);
      } else if (c == '"' && state_ != State::plain) {
        state_ = State::quoted;  // opens, or was a doubled one
      } else {
        state_ = c == ',' ? State::start : State::plain;
      }
    }
    if (!last || from == bytes.size()) return false;
    if (state_ == State::quoted) {
      piece = {.begin = from, .end = from, .next = bytes.size()};
      piece.fault = "a quoted field that starts in this record is not closed";
      return true;
    }
    return found(bytes, from, bytes.size(), piece);
  }

 private:
  enum class State { start, plain, quoted, after_quote };

  bool found(std::string_view bytes, size_t from, size_t end, RowPiece& piece) {
    state_ = State::start;
    looked_ = 0;
    const std::string_view record = without_end(bytes.substr(from, end - from), "\r");
    piece = {.begin = from, .end = from + record.size(), .next = end, .blank = record.empty()};
    if (end < bytes.size()) piece.next++;
    return true;
  }

  State state_ = State::start;
  size_t looked_ = 0;
};

}  // namespace

std::unique_ptr<Splitter> split_nothing() {
  return std::make_unique<WholeSplitter>();
}
std::unique_ptr<Splitter> split_lines() {
  return std::make_unique<LineSplitter>();
}
std::unique_ptr<Splitter> split_at_lines(std::string separator) {
  return std::make_unique<SeparatorSplitter>(std::move(separator));
}
std::unique_ptr<Splitter> split_json() {
  return std::make_unique<JsonSplitter>();
}
std::unique_ptr<Splitter> split_csv() {
  return std::make_unique<CsvSplitter>();
}

const char* parse_csv_record(std::string_view record, std::vector<std::string>& fields) {
  fields.clear();
  for (size_t at = 0;; at++) {  // a field a turn; `at` is its first character
    std::string& field = fields.emplace_back();
    if (at < record.size() && record[at] == '"') {
      for (at++;; at += 2) {
        const size_t quote = record.find('"', at);
        if (quote == std::string_view::npos) return "a quoted field is not closed";
        field += record.substr(at, quote - at);
        at = quote;
        if (quote + 1 == record.size() || record[quote + 1] != '"') break;
        field += '"';
      }
      at++;
      if (at < record.size() && record[at] != ',') return "something follows a closing quote";
    } else {
      const size_t end = std::min(record.find(',', at), record.size());
      field = record.substr(at, end - at);
      if (field.find('"') != std::string::npos) return "a quote stands inside an unquoted field";
      at = end;
    }
    if (at == record.size()) return nullptr;
  }
}

}  // namespace tinyllama
