// Every distinct word is a list of symbols (pieces so far), with the candidate that each pair of
// neighbours would become. A merge visits the words in which its candidate stands and takes their
// counts off and on again; a heap finds the commonest candidate.
#include "text/tokenizer_train.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "text/flat_map.h"
#include "text/utf8.h"

namespace tinyllama {

namespace {

constexpr char32_t kSpace = 0x2581;
constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // the same
constexpr int kProgressEvery = 32;                         // merges

struct CharacterCount {
  char32_t c;
  uint64_t count;
};

// Calls visit(character) for the text of a word.
template <class Visit>
void for_characters(std::string_view word, const Visit& visit) {
  while (!word.empty()) {
    const Utf8Char c = decode_utf8(word);
    visit(c.code);
    word.remove_prefix(static_cast<size_t>(c.length));
  }
}

// The commonest characters until `coverage` of the corpus is reached, equal counts in order of code
// points; and the space in any case, for spelled in bytes it would not decode to a space.
std::vector<CharacterCount> covered_characters(
    const std::vector<std::pair<std::string_view, uint64_t>>& words, double coverage) {
  std::unordered_map<char32_t, uint64_t> counts;
  uint64_t all = 0;
  for (const auto& [word, count] : words) {
    for_characters(word, [&, n = count](char32_t c) {
      counts[c == ' ' ? kSpace : c] += n;
      all += n;
    });
  }
  std::vector<CharacterCount> sorted;
  sorted.reserve(counts.size());
  for (const auto& [c, count] : counts) sorted.push_back({c, count});
  std::sort(sorted.begin(), sorted.end(), [](const CharacterCount& a, const CharacterCount& b) {
    return a.count != b.count ? a.count > b.count : a.c < b.c;
  });
  uint64_t so_far = 0;
  size_t kept = 0;
  while (kept < sorted.size() &&
         static_cast<double>(so_far) / static_cast<double>(all) < coverage) {
    so_far += sorted[kept++].count;
  }
  const auto rest = sorted.begin() + static_cast<std::ptrdiff_t>(kept);
  const auto space = std::find_if(
      rest, sorted.end(), [](const CharacterCount& character) { return character.c == kSpace; });
  if (space != sorted.end()) std::swap(sorted[kept++], *space);
  sorted.resize(kept);
  return sorted;
}

// A character, or a piece learned.
struct Part {
  std::string text;
  int length;         // characters
  bool space_starts;  // with U+2581
  bool all_space;
};

// What a pair of neighbours would become. Pairs that spell the same text are one candidate.
struct Candidate {
  const std::string* text;  // its key in the table of candidates
  int32_t length;
  int32_t part = -1;            // once learned: the index of its Part; also its rank
  uint64_t count = 0;           // in the corpus as it is split now
  int touched = -1;             // n_merges_ when it last gained a pair
  std::vector<uint32_t> words;  // where it stands, or once stood
};

struct Word {
  uint64_t count;
  uint32_t begin, length;  // in the arrays of symbols
};

class Trainer {
 public:
  // No piece learned spells one of `reserved`.
  Trainer(const Vocab& reserved, const std::vector<CharacterCount>& characters,
          int max_piece_length);

  void add_word(std::string_view word, uint64_t count);
  // Learns up to `n` pieces; fewer when no pair is left.
  void learn(int n, const Progress& progress);

  // The pieces learned, in order.
  std::vector<std::string> pieces() const;
  uint64_t n_tokens() const;

 private:
  static constexpr int32_t kNoCandidate = -1;

  struct Entry {  // of the heap; out of date when the candidate's count is another by now
    uint64_t count;
    int32_t candidate;
  };

  void add_part(std::string text, int length);
  void add_segment(uint32_t begin, uint64_t count);
  bool may_join(const Part& left, const Part& right) const;
  int32_t candidate_of(int32_t left, int32_t right);
  void set_pair(uint32_t word, uint32_t at);
  void count_pairs(const Word& word, bool add);
  bool comes_after(const Entry& a, const Entry& b) const;
  void push(int32_t candidate);
  int32_t pop_best();
  void merge(uint32_t id, int32_t candidate);

  const int max_length_;
  int32_t n_characters_ = 0;
  FlatMap<int32_t> characters_;  // code point -> part
  std::vector<Part> parts_;      // characters, then pieces in the order learned
  std::vector<Word> words_;
  std::vector<int32_t> symbols_;  // of all words: indices of parts
  std::vector<int32_t> pairs_;    // the candidate of a symbol and the next one of its word
  FlatMap<int32_t> by_pair_;
  std::unordered_map<std::string, int32_t> by_text_;
  std::vector<Candidate> candidates_;
  std::vector<int32_t> touched_;  // during the merge at hand
  std::vector<Entry> heap_;
  int n_merges_ = 0;  // with the one at hand
  uint64_t n_byte_tokens_ = 0;
};

Trainer::Trainer(const Vocab& reserved, const std::vector<CharacterCount>& characters,
                 int max_piece_length)
    : max_length_(max_piece_length), n_characters_(static_cast<int32_t>(characters.size())) {
  for (const Piece& piece : reserved.pieces) by_text_.emplace(piece.text, kNoCandidate);
  for (const CharacterCount& character : characters) {
    characters_.insert(character.c, static_cast<int32_t>(parts_.size()));
    std::string text;
    append_utf8(text, character.c);
    add_part(std::move(text), 1);
  }
}

void Trainer::add_part(std::string text, int length) {
  const bool starts = text.starts_with(kSpaceSymbol);
  const bool all = starts && text.size() == static_cast<size_t>(length) * kSpaceSymbol.size() &&
                   text.ends_with(kSpaceSymbol);
  parts_.push_back({std::move(text), length, starts, all});
}

// A space stands at the start of a piece, or it is all spaces.
bool Trainer::may_join(const Part& left, const Part& right) const {
  if (left.length + right.length > max_length_) return false;
  if (right.space_starts) return left.all_space && right.all_space;
  return !left.all_space || left.length == 1;
}

int32_t Trainer::candidate_of(int32_t left, int32_t right) {
  const uint64_t key = uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  if (const int32_t* found = by_pair_.find(key)) return *found;
  const Part &l = parts_[static_cast<size_t>(left)], &r = parts_[static_cast<size_t>(right)];
  int32_t id = kNoCandidate;
  if (may_join(l, r)) {
    const auto [it, is_new] =
        by_text_.emplace(l.text + r.text, static_cast<int32_t>(candidates_.size()));
    id = it->second;
    if (is_new) candidates_.push_back({.text = &it->first, .length = l.length + r.length});
  }
  by_pair_.insert(key, id);
  return id;
}

// Works out the candidate of the pair that starts at `at`, and notes that it stands in this word.
void Trainer::set_pair(uint32_t word, uint32_t at) {
  const int32_t id = candidate_of(symbols_[at], symbols_[at + 1]);
  pairs_[at] = id;
  if (id == kNoCandidate) return;
  Candidate& candidate = candidates_[static_cast<size_t>(id)];
  if (candidate.part >= 0) return;  // will be merged at once
  if (candidate.words.empty() || candidate.words.back() != word) candidate.words.push_back(word);
  if (candidate.touched != n_merges_) touched_.push_back(id);
  candidate.touched = n_merges_;
}

// Of equal neighbours ("aa" in "aaa") the second overlaps the first and does not count.
void Trainer::count_pairs(const Word& word, bool add) {
  int32_t last = kNoCandidate;
  for (uint32_t at = word.begin; at + 1 < word.begin + word.length; ++at) {
    const int32_t id = pairs_[at];
    if (id == last) {
      last = kNoCandidate;
      continue;
    }
    last = id;
    if (id == kNoCandidate) continue;
    uint64_t& count = candidates_[static_cast<size_t>(id)].count;
    count = add ? count + word.count : count - word.count;
  }
}

// The symbols from `begin` on become a word, if there is anything to merge.
void Trainer::add_segment(uint32_t begin, uint64_t count) {
  const auto id = static_cast<uint32_t>(words_.size());
  words_.push_back({count, begin, static_cast<uint32_t>(symbols_.size()) - begin});
  pairs_.resize(symbols_.size(), kNoCandidate);
  for (uint32_t at = begin; at + 1 < symbols_.size(); ++at) set_pair(id, at);
  count_pairs(words_.back(), true);
}

void Trainer::add_word(std::string_view word, uint64_t count) {
  if (symbols_.size() + WordCounts::kMaxWord > UINT32_MAX / 2) {
    fail(
        "[tokenizer train] too many distinct words: want at most 2^31 characters in them; read "
        "less of the corpus");
  }
  auto begin = static_cast<uint32_t>(symbols_.size());
  const auto finish = [&] {
    if (symbols_.size() > begin) add_segment(begin, count);
    begin = static_cast<uint32_t>(symbols_.size());
  };
  for_characters(word, [&](char32_t c) {
    if (const int32_t* part = characters_.find(c == ' ' ? kSpace : c)) {
      symbols_.push_back(*part);
      return;
    }
    finish();
    std::string bytes;
    append_utf8(bytes, c);
    n_byte_tokens_ += bytes.size() * count;
  });
  finish();
}

// The heap's order: whether `a` is to be learned after `b`.
bool Trainer::comes_after(const Entry& a, const Entry& b) const {
  if (a.count != b.count) return a.count < b.count;
  const Candidate& of_a = candidates_[static_cast<size_t>(a.candidate)];
  const Candidate& of_b = candidates_[static_cast<size_t>(b.candidate)];
  if (of_a.length != of_b.length) return of_a.length > of_b.length;
  return *of_a.text > *of_b.text;
}

void Trainer::push(int32_t candidate) {
  const uint64_t count = candidates_[static_cast<size_t>(candidate)].count;
  if (count == 0) return;
  heap_.push_back({count, candidate});
  std::push_heap(heap_.begin(), heap_.end(),
                 [this](const Entry& a, const Entry& b) { return comes_after(a, b); });
}

// Counts only fall between the pushes of a candidate, so an entry that is out of date is too high
// and comes up early enough to be put right.
int32_t Trainer::pop_best() {
  const auto after = [this](const Entry& a, const Entry& b) { return comes_after(a, b); };
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), after);
    const Entry top = heap_.back();
    heap_.pop_back();
    const Candidate& candidate = candidates_[static_cast<size_t>(top.candidate)];
    if (candidate.part >= 0) continue;
    if (candidate.count == top.count) return top.candidate;
    if (candidate.count < top.count) push(top.candidate);
  }
  return kNoCandidate;
}

// Merges what can be merged in one word, the earliest learned first, leftmost of equals, as the
// tokenizer does. A merge can bring two parts together that spell a piece learned long ago.
void Trainer::merge(uint32_t id, int32_t candidate) {
  Word& word = words_[id];
  int32_t* const symbols = symbols_.data() + word.begin;
  int32_t* const pairs = pairs_.data() + word.begin;
  uint32_t n = word.length;
  if (std::find(pairs, pairs + n - 1, candidate) == pairs + n - 1) return;  // no longer in it
  count_pairs(word, false);
  while (true) {
    uint32_t best = n;
    int32_t best_part = INT32_MAX;
    for (uint32_t i = 0; i + 1 < n; ++i) {
      if (pairs[i] == kNoCandidate) continue;
      const int32_t part = candidates_[static_cast<size_t>(pairs[i])].part;
      if (part >= 0 && part < best_part) best = i, best_part = part;
    }
    if (best == n) break;
    symbols[best] = best_part;
    std::copy(symbols + best + 2, symbols + n, symbols + best + 1);
    std::copy(pairs + best + 1, pairs + n, pairs + best);
    word.length = --n;
    if (best > 0) set_pair(id, word.begin + best - 1);
    if (best + 1 < n) set_pair(id, word.begin + best);
  }
  count_pairs(word, true);
}

void Trainer::learn(int n, const Progress& progress) {
  for (const int32_t id : touched_) push(id);
  touched_.clear();
  for (int i = 0; i < n; ++i) {
    if (progress && i % kProgressEvery == 0) {
      progress("learning pieces", static_cast<uint64_t>(i), static_cast<uint64_t>(n));
    }
    ++n_merges_;
    const int32_t best = pop_best();
    if (best == kNoCandidate) return;
    Candidate& chosen = candidates_[static_cast<size_t>(best)];
    chosen.part = static_cast<int32_t>(parts_.size());
    add_part(*chosen.text, chosen.length);
    const std::vector<uint32_t> where = std::move(chosen.words);
    for (const uint32_t word : where) merge(word, best);
    for (const int32_t id : touched_) push(id);
    touched_.clear();
  }
}

std::vector<std::string> Trainer::pieces() const {
  std::vector<std::string> texts;
  for (size_t i = static_cast<size_t>(n_characters_); i < parts_.size(); ++i) {
    texts.push_back(parts_[i].text);
  }
  return texts;
}

uint64_t Trainer::n_tokens() const {
  uint64_t n = n_byte_tokens_;
  for (const Word& word : words_) n += word.count * word.length;
  return n;
}

// <unk>, <s>, </s> and the bytes.
Vocab beginning() {
  Vocab vocab;
  vocab.pieces = {{"<unk>", 0, PieceType::unknown},
                  {"<s>", 0, PieceType::control},
                  {"</s>", 0, PieceType::control}};
  vocab.unk = 0, vocab.bos = 1, vocab.eos = 2;
  for (int byte = 0; byte < 256; ++byte) {
    vocab.pieces.push_back({fmt::format("<0x{:02X}>", byte), 0, PieceType::byte});
  }
  return vocab;
}

}  // namespace

TrainedTokenizer train_tokenizer(const WordCounts& counts, const TokenizerTrainOptions& options,
                                 const Progress& progress) {
  TL_CHECK(options.max_piece_length >= 1 && options.max_piece_length <= kMaxTrainedPiece);
  if (counts.empty()) {
    fail("[tokenizer train] the corpus has no text: want lines of UTF-8");
  }
  const auto words = counts.sorted();
  const auto characters = covered_characters(words, options.character_coverage);
  const auto n_characters = static_cast<int>(characters.size());
  const int n_fixed = kFirstLearnedPiece + n_characters;
  if (options.vocab_size < n_fixed) {
    fail(fmt::format(
        "[tokenizer train] a vocabulary of {} is too small: control and byte pieces are "
        "{}, and {} characters make up {} of the corpus; want at least {}, or a lower "
        "character coverage",
        options.vocab_size, kFirstLearnedPiece, n_characters, options.character_coverage, n_fixed));
  }

  TrainedTokenizer result;
  result.n_characters = n_characters;
  result.vocab = beginning();
  Trainer trainer(result.vocab, characters, options.max_piece_length);
  for (size_t i = 0; i < words.size(); ++i) {
    trainer.add_word(words[i].first, words[i].second);
    if (progress && i % 4096 == 0) progress("splitting words", i, words.size());
  }
  trainer.learn(options.vocab_size - n_fixed, progress);

  float score = 0;
  for (std::string& piece : trainer.pieces()) {
    result.vocab.pieces.push_back({std::move(piece), score--, PieceType::normal});
    ++result.n_merged;
  }
  for (const CharacterCount& character : characters) {
    std::string text;
    append_utf8(text, character.c);
    result.vocab.pieces.push_back({std::move(text), score--, PieceType::normal});
  }
  if (const auto n = static_cast<int>(result.vocab.pieces.size()); n < options.vocab_size) {
    std::string invalid;
    if (counts.n_invalid_bytes() > 0)
      invalid = fmt::format(" ({} of its bytes are not UTF-8)", counts.n_invalid_bytes());
    fail(fmt::format(
        "[tokenizer train] want {} pieces, but the corpus{} gives only {}: read more of "
        "it, or ask for at most {}",
        options.vocab_size, invalid, n, n));
  }
  result.n_tokens = trainer.n_tokens() + counts.n_byte_pieces();
  return result;
}

}  // namespace tinyllama
