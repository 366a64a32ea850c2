// A corpus as BPE training sees it: how often each word occurs. A word here is a stretch of text
// that no piece may reach beyond, so that what happens in one does not depend on its neighbours.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tinyllama {

// Where a text is cut into words. The names and the defaults are those of the trainer_spec of
// Llama's tokenizer.model.
struct WordRules {
  bool split_digits = true;             // each ASCII digit is a word
  bool split_by_unicode_script = true;  // "don't" is "don", "'", "t"; marks stay with their letter
  bool allow_whitespace_only_pieces = true;  // a run of spaces is not cut
};

// Words and their counts. In words a space stands for U+2581, and the first word of each line has a
// space before it (the dummy prefix). Memory is bounded by the distinct words, about 100 bytes
// each; a word has at most kMaxWord characters, a longer one is cut.
class WordCounts {
 public:
  static constexpr size_t kMaxWord = 128;

  explicit WordCounts(const WordRules& rules = {}) : rules_(rules) {}

  // Counts the lines of `text`, which ends where a line does. A line is what stands between '\n's;
  // empty ones are nothing. Bytes that are not UTF-8 are counted and skipped. Tabs and NULs are in
  // no word, as SentencePiece has it: they are left to byte pieces.
  void add(std::string_view text);
  void add(const WordCounts& other);

  // In order of count, the highest first; equal counts in order of bytes. So the result does not
  // depend on the order in which texts came.
  std::vector<std::pair<std::string_view, uint64_t>> sorted() const;

  const WordRules& rules() const { return rules_; }
  bool empty() const { return counts_.empty(); }
  size_t size() const { return counts_.size(); }           // distinct words
  uint64_t n_words() const { return n_words_; }            // all of them
  uint64_t n_lines() const { return n_lines_; }            // that are not empty
  uint64_t n_bytes() const { return n_bytes_; }            // of these, without their ends
  uint64_t n_invalid_bytes() const { return n_invalid_; }  // not UTF-8
  uint64_t n_byte_pieces() const { return n_left_out_; }   // tabs and NULs

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  void add_line(std::string_view line);
  void add_word(std::string_view word);

  WordRules rules_;
  std::unordered_map<std::string, uint64_t, Hash, std::equal_to<>> counts_;
  std::string line_;  // the line at hand, with its prefix
  uint64_t n_words_ = 0, n_lines_ = 0, n_bytes_ = 0, n_invalid_ = 0, n_left_out_ = 0;
};

}  // namespace tinyllama
