// Cutting lines into words. A cut is made wherever SentencePiece's trainer would refuse a piece
// that reaches across.
#include "text/word_counts.h"

#include <algorithm>

#include "text/unicode_script.h"
#include "text/utf8.h"

namespace tinyllama {

namespace {

constexpr char32_t kSpaceSymbol = 0x2581;

bool is_digit(char32_t c) {
  return c >= '0' && c <= '9';
}

// The place between two characters, walking along a line.
class Cutter {
 public:
  explicit Cutter(const WordRules& rules) : rules_(rules) {}

  // Whether a word ends before `c`, which comes next.
  bool cuts_before(char32_t c) {
    const bool space = c == ' ', digit = rules_.split_digits && is_digit(c);
    Script script = script_of(c);
    if (script == Script::inherited) script = script_;
    bool cut = false;
    if (space) {
      cut = !after_space_ || !rules_.allow_whitespace_only_pieces;
    } else if (digit || after_digit_) {
      cut = true;
    } else if (!after_space_) {
      cut = rules_.split_by_unicode_script && script != script_;
    }
    after_space_ = space, after_digit_ = digit, script_ = script;
    return cut;
  }

 private:
  const WordRules rules_;
  bool after_space_ = false, after_digit_ = false;
  Script script_ = Script::common;
};

}  // namespace

void WordCounts::add_word(std::string_view word) {
  ++n_words_;
  const auto found = counts_.find(word);
  if (found != counts_.end()) {
    ++found->second;
  } else {
    counts_.emplace(word, 1);
  }
}

void WordCounts::add_line(std::string_view line) {
  line_.assign(1, ' ');
  line_ += line;
  Cutter cutter(rules_);
  // The word at hand is line_[begin, end); what is kept of the line moves to its front, since
  // U+2581 shrinks to a space.
  size_t begin = 0, end = 0, length = 0;
  const auto finish = [&] {
    if (end > begin) add_word(std::string_view(line_).substr(begin, end - begin));
    begin = end;
    length = 0;
  };
  for (size_t at = 0; at < line_.size();) {
    const Utf8Char c = decode_utf8(std::string_view(line_).substr(at));
    const auto n = static_cast<size_t>(c.length);
    const bool left_out = !c.valid || c.code == '\t' || c.code == '\0';
    if (left_out) {
      (c.valid ? n_left_out_ : n_invalid_) += 1;
      finish();
    } else {
      const char32_t code = c.code == kSpaceSymbol ? U' ' : c.code;
      if (cutter.cuts_before(code) || length == kMaxWord) finish();
      ++length;
      if (code == ' ') {
        line_[end++] = ' ';
      } else {
        for (size_t i = 0; i < n; ++i) line_[end++] = line_[at + i];
      }
    }
    at += n;
  }
  finish();
}

void WordCounts::add(std::string_view text) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (end > 0) {
      ++n_lines_;
      n_bytes_ += end;
      add_line(text.substr(0, end));
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

void WordCounts::add(const WordCounts& other) {
  for (const auto& [word, count] : other.counts_) counts_[word] += count;
  n_words_ += other.n_words_;
  n_lines_ += other.n_lines_;
  n_bytes_ += other.n_bytes_;
  n_invalid_ += other.n_invalid_;
  n_left_out_ += other.n_left_out_;
}

std::vector<std::pair<std::string_view, uint64_t>> WordCounts::sorted() const {
  std::vector<std::pair<std::string_view, uint64_t>> words(counts_.begin(), counts_.end());
  std::sort(words.begin(), words.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  return words;
}

}  // namespace tinyllama
