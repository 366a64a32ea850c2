// Training a tokenizer: merges worked out by hand, cuts, coverage, limits, and that the trainer
// splits a corpus exactly as the tokenizer that it made.
#include "text/tokenizer_train.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <sstream>

#include "base/error.h"
#include "formats/sentencepiece_model.h"
#include "text/tokenizer.h"
#include "text/unicode_script.h"
#include "text/utf8.h"

namespace tinyllama {
namespace {

using Strings = std::vector<std::string>;

WordCounts count(std::string_view text, const WordRules& rules = {}) {
  WordCounts words(rules);
  words.add(text);
  return words;
}

// The words of a line in order of bytes, for small texts in which each stands once.
Strings words_of(std::string_view text, const WordRules& rules = {}) {
  Strings words;
  const WordCounts counts = count(text, rules);
  for (const auto& [word, n] : counts.sorted()) words.emplace_back(word);
  std::sort(words.begin(), words.end());
  return words;
}

// The largest vocabulary that the corpus gives, as the error for a larger one tells.
int most_pieces(const WordCounts& words, TokenizerTrainOptions options) {
  options.vocab_size = 1'000'000;
  try {
    train_tokenizer(words, options);
  } catch (const Error& error) {
    const std::string text = error.what();
    return std::stoi(text.substr(text.rfind(' ') + 1));
  }
  return options.vocab_size;
}

TrainedTokenizer train(std::string_view text, int n_pieces, TokenizerTrainOptions options = {},
                       const WordRules& rules = {}) {
  options.vocab_size = n_pieces;
  return train_tokenizer(count(text, rules), options);
}

// Everything there is to learn.
TrainedTokenizer train_all(std::string_view text, TokenizerTrainOptions options = {},
                           const WordRules& rules = {}) {
  options.character_coverage = 1;
  return train(text, most_pieces(count(text, rules), options), options, rules);
}

Strings texts(const TrainedTokenizer& trained, int first, int n) {
  Strings list;
  for (int i = first; i < first + n; i++)
    list.push_back(trained.vocab.pieces.at(static_cast<size_t>(i)).text);
  return list;
}

Strings merges(const TrainedTokenizer& trained) {
  return texts(trained, kFirstLearnedPiece, trained.n_merged);
}

TEST(WordCounts, CutsWhereNoPieceMayReachAcross) {
  EXPECT_EQ(words_of("one two"), (Strings{" one", " two"}));
  EXPECT_EQ(words_of("don't"), (Strings{" don", "'", "t"}));
  EXPECT_EQ(words_of("a12"), (Strings{" a", "1", "2"}));
  EXPECT_EQ(words_of(" 1"), (Strings{"  ", "1"}));
  EXPECT_EQ(words_of("a    b"), (Strings{"    b", " a"}));
  EXPECT_EQ(words_of("\xD0\xB1z\xE4\xB8\xAD\xE3\x81\x82"),
            (Strings{" \xD0\xB1", "z", "\xE4\xB8\xAD\xE3\x81\x82"}));
  EXPECT_EQ(words_of("e\xCC\x81x"), (Strings{" e\xCC\x81x"})) << "a combining mark cuts nothing";
  EXPECT_EQ(words_of("a\xE2\x96\x81"
                     "b"),
            (Strings{" a", " b"}))
      << "U+2581 is a space";
  EXPECT_EQ(words_of("a\nb\n\nc"), (Strings{" a", " b", " c"}));
}

TEST(WordCounts, RulesCanBeSwitchedOff) {
  EXPECT_EQ(words_of("a12", {.split_digits = false}), (Strings{" a", "12"}));
  EXPECT_EQ(words_of("don't", {.split_by_unicode_script = false}), (Strings{" don't"}));
  EXPECT_EQ(words_of("a  b", {.allow_whitespace_only_pieces = false}), (Strings{" ", " a", " b"}));
}

TEST(WordCounts, LeavesOutWhatCannotBeAPiece) {
  const WordCounts words =
      count(std::string_view("a\tb\0c\xFF"
                             "d\xE4\xB8",
                             9));
  EXPECT_EQ(words.n_byte_pieces(), 2u);
  EXPECT_EQ(words.n_invalid_bytes(), 3u);
  EXPECT_EQ(words.size(), 4u);
  EXPECT_TRUE(count("\n\n").empty());
  EXPECT_TRUE(count("").empty());
}

TEST(WordCounts, OrderOfTextsDoesNotMatter) {
  WordCounts forward, parts[2], sum;
  const Strings lines = {"the cat\n", "the dog\n", "a cat and a dog\n"};
  for (const std::string& line : lines) forward.add(line);
  for (size_t i = 0; i < lines.size(); i++) parts[i % 2].add(lines[lines.size() - 1 - i]);
  sum.add(parts[1]);
  sum.add(parts[0]);
  EXPECT_EQ(forward.sorted(), sum.sorted());
  EXPECT_EQ(forward.n_words(), sum.n_words());
  EXPECT_EQ(forward.n_bytes(), sum.n_bytes());
}

TEST(WordCounts, LongWordsAreCut) {
  const WordCounts words = count(std::string(1000, 'x'));
  size_t longest = 0;
  for (const auto& [word, n] : words.sorted()) longest = std::max(longest, word.size());
  EXPECT_EQ(longest, WordCounts::kMaxWord);
  EXPECT_EQ(words.n_words(), 1001 / WordCounts::kMaxWord + 1);
}

TEST(UnicodeScript, KnownCharacters) {
  EXPECT_EQ(script_of('a'), Script::latin);
  EXPECT_EQ(script_of('Z'), Script::latin);
  for (const char32_t c : U"@[`{0 \u00D7\u2581\U0001F600")
    EXPECT_EQ(script_of(c), Script::common) << std::hex << static_cast<uint32_t>(c);
  for (const char32_t c : {U'\u00E9', U'\u0100', U'\u1E00'}) EXPECT_EQ(script_of(c), Script::latin);
  for (const char32_t c : {U'\u4E2D', U'\u3042', U'\u30A2', U'\u30FC', U'\U00020000'})
    EXPECT_EQ(script_of(c), Script::han);
  EXPECT_EQ(script_of(U'\u0301'), Script::inherited);
  EXPECT_EQ(script_of(U'\u0431'), script_of(U'\u042F'));
  EXPECT_NE(script_of(U'\u0431'), script_of(U'\u03B1'));
  EXPECT_EQ(script_of(U'\u0915'), script_of(U'\u093F')) << "a vowel sign and its letter";
  script_of(U'\U0010FFFF');
}

// Sennrich's example. Pairs of equal count go by length, then by bytes:
//   low x 5, lower x 2, newest x 6, widest x 3
//   9 es (st)   9 est   7 lo (ow, _l)   7 low (_lo)   7 _low   6 ew (ne, _n, west)   6 _n
//   6 _new (newest's rest "ewest")   6 _newest   3 id (wi, _w, dest)
TEST(TokenizerTrain, MergesByHand) {
  const char* corpus =
      "low low low low low lower lower newest newest newest newest newest newest "
      "widest widest widest";
  const TrainedTokenizer trained = train(corpus, kFirstLearnedPiece + 10 + 11, {1, 1.0, 16});
  EXPECT_EQ(merges(trained), (Strings{"es", "est", "lo", "low", "\u2581low", "ew", "\u2581n",
                                      "\u2581new", "\u2581newest", "id"}));
  EXPECT_EQ(texts(trained, kFirstLearnedPiece + 10, trained.n_characters),
            (Strings{"e", "w", "\u2581", "s", "t", "l", "o", "n", "d", "i", "r"}));
  // _low: 5 of 1; _low e r: 2 of 3; _newest: 6 of 1; _ w id est: 3 of 4.
  EXPECT_EQ(trained.n_tokens, 5u + 6 + 6 + 12);
}

TEST(TokenizerTrain, IdsAndScores) {
  const TrainedTokenizer trained = train_all("abab ab");
  const Vocab& vocab = trained.vocab;
  EXPECT_EQ(texts(trained, 0, 4), (Strings{"<unk>", "<s>", "</s>", "<0x00>"}));
  EXPECT_EQ(vocab.pieces[0].type, PieceType::unknown);
  EXPECT_EQ(vocab.pieces[1].type, PieceType::control);
  EXPECT_EQ(vocab.pieces[258].text, "<0xFF>");
  EXPECT_EQ(vocab.pieces[258].type, PieceType::byte);
  EXPECT_EQ(std::tie(vocab.unk, vocab.bos, vocab.eos, vocab.pad), std::tuple(0, 1, 2, -1));
  for (size_t i = 259; i < vocab.pieces.size(); i++)
    EXPECT_EQ(vocab.pieces[i].score, -static_cast<float>(i - 259));
  EXPECT_EQ(merges(trained), (Strings{"ab",
                                      "\u2581"
                                      "ab",
                                      "\u2581"
                                      "abab"}));
}

// "aaa" holds one "aa", "aaaa" two.
TEST(TokenizerTrain, OverlapsCountOnce) {
  // aa: 1 in each of three; bc: 4.
  EXPECT_EQ(merges(train_all("xaaa yaaa zaaa xbc ybc zbc vbc")).front(), "bc");
  // aa: 2 in each of three.
  EXPECT_EQ(merges(train_all("xaaaa yaaaa zaaaa xbc ybc zbc vbc")).front(), "aa");
}

TEST(TokenizerTrain, SpacesStandFirstOrAlone) {
  const TrainedTokenizer trained = train_all("a    b\nc    d    e\n    f");
  for (const std::string& piece : merges(trained)) {
    const size_t last = piece.rfind("\u2581");
    const bool alone = last != std::string::npos && last + 3 == piece.size();
    if (last == std::string::npos || last == 0) continue;
    EXPECT_TRUE(alone) << piece;
    EXPECT_EQ(piece.find_first_not_of("\u2581"), std::string::npos) << piece;
  }
  EXPECT_EQ(merges(trained).front(), "\u2581\u2581");
}

TEST(TokenizerTrain, PiecesAreNoLongerThanAsked) {
  for (const int longest : {1, 2, 3, 5, 16}) {
    size_t found = 0;
    for (const std::string& piece :
         merges(train_all("abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz",
                          {.max_piece_length = longest})))
      found = std::max(found, utf8_length(piece));
    const auto limit = static_cast<size_t>(longest);
    EXPECT_LE(found, limit);
    EXPECT_GE(found, limit == 1 ? 0 : limit - 1);
  }
}

TEST(TokenizerTrain, CoverageLeavesRareCharactersToBytes) {
  // 100 characters: _ 20, a 40, b 39, U+4E2D 1.
  std::string corpus;
  for (int i = 0; i < 19; i++) corpus += "aabb ";
  corpus += "aab\xE4\xB8\xAD";
  const TrainedTokenizer all = train(corpus, 259 + 4, {1, 1.0, 16});
  EXPECT_EQ(all.n_characters, 4);
  const TrainedTokenizer most = train(corpus, 259 + 3, {1, 0.99, 16});
  EXPECT_EQ(most.n_characters, 3);
  EXPECT_EQ(all.n_tokens, 100u);
  EXPECT_EQ(most.n_tokens, 99u + 3);
  EXPECT_EQ(Tokenizer(most.vocab).encode(corpus).size(), most.n_tokens);
}

TEST(TokenizerTrain, SpaceIsAlwaysAPiece) {
  const TrainedTokenizer trained = train("aaaaaaaaaaaaaaaaaaa b", 259 + 2, {1, 0.8, 16});
  EXPECT_EQ(texts(trained, 259, 2), (Strings{"a", "\u2581"}));
}

TEST(TokenizerTrain, NoPieceSpellsAControlPiece) {
  std::string corpus;
  for (int i = 0; i < 50; i++) corpus += "</s> <unk> <0x41> x</s>\n";
  const TrainedTokenizer trained =
      train_all(corpus, {}, {.split_digits = false, .split_by_unicode_script = false});
  for (const std::string& piece : merges(trained)) {
    EXPECT_NE(piece, "</s>");
    EXPECT_NE(piece, "<unk>");
    EXPECT_NE(piece, "<0x41>");
  }
  EXPECT_EQ(Tokenizer(trained.vocab).encode("</s>").size(), 1u) << "\u2581</s> may be one";
  EXPECT_NE(Tokenizer(trained.vocab).encode("</s>")[0], 2);
}

TEST(TokenizerTrain, ErrorsNameTheRemedy) {
  const auto error_of = [](std::string_view text, int n, double coverage) -> std::string {
    try {
      train(text, n, {.character_coverage = coverage});
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  };
  EXPECT_NE(error_of("", 300, 1).find("no text"), std::string::npos);
  EXPECT_NE(error_of("\n\n", 300, 1).find("no text"), std::string::npos);
  EXPECT_NE(error_of("abcdefgh", 260, 1).find("want at least 268"), std::string::npos);
  EXPECT_NE(error_of("ab", 5000, 1).find("at most 264"), std::string::npos);
  EXPECT_NE(error_of("ab\xFF", 5000, 1).find("1 of its bytes are not UTF-8"), std::string::npos);
  EXPECT_EQ(error_of("ab", 264, 1), "none");
}

TEST(TokenizerTrain, ProgressCanStopIt) {
  const auto stop = [](std::string_view, uint64_t, uint64_t) { throw Interrupted("stop"); };
  EXPECT_THROW(train_tokenizer(count("ab"), {.vocab_size = 264, .character_coverage = 1}, stop),
               Interrupted);
}

std::string random_corpus(std::mt19937_64& random, const Strings& units, size_t n_units) {
  std::string text;
  for (size_t n = 200 + random() % 2000; n > 0; n--) {
    text += units[random() % n_units];
    if (n % 40 == 0) text += '\n';  // no word is cut for its length
  }
  return text;
}

// The invariant that everything rests on: after training, each word is split as the tokenizer
// splits it, also where pieces overlap, where late merges spell early pieces, and where characters
// have no piece.
TEST(TokenizerTrain, SplitsAsTheTokenizerDoes) {
  const Strings units = {"a",         "b",  "ab",     " ",  "c",        "\n",
                         "aa",        "  ", "1",      "\t", "\xC3\xA9", "\xE4\xB8\xAD",
                         "e\xCC\x81", ",",  "\u2581", "ba"};
  std::mt19937_64 random(11);
  size_t n_merged = 0;
  for (int i = 0; i < 300; i++) {
    const std::string corpus = random_corpus(random, units, 3 + random() % (units.size() - 2));
    const WordRules rules = {random() % 2 == 0, random() % 2 == 0, random() % 4 != 0};
    const WordCounts words = count(corpus, rules);
    TokenizerTrainOptions options = {.character_coverage = random() % 2 == 0 ? 1.0 : 0.97,
                                     .max_piece_length = static_cast<int>(1 + random() % 16)};
    const int most = most_pieces(words, options);
    const int least = most - static_cast<int>(random() % 100);
    options.vocab_size = most;
    TrainedTokenizer trained = train_tokenizer(words, options);
    if (least > most - trained.n_merged) {
      options.vocab_size = least;
      trained = train_tokenizer(words, options);
    }
    n_merged += static_cast<size_t>(trained.n_merged);
    const Tokenizer tokenizer(parse_sentencepiece(
        std::as_bytes(std::span<const char>(make_sentencepiece(trained.vocab))), "trained"));
    size_t n_tokens = 0;
    std::istringstream lines(corpus);
    for (std::string line; std::getline(lines, line);) {
      const std::vector<TokenId> ids = tokenizer.encode(line);
      n_tokens += ids.size();
      std::string back = line;  // U+2581 comes back as a space
      for (size_t at; (at = back.find("\u2581")) != std::string::npos;) back.replace(at, 3, " ");
      EXPECT_EQ(tokenizer.decode(ids), back);
    }
    ASSERT_EQ(trained.n_tokens, n_tokens) << "corpus " << i << ": " << corpus;
  }
  EXPECT_GT(n_merged, 10'000u);
}

// What the trainer_spec says of the training does not change the model that is read back.
TEST(TokenizerTrain, RecordOfTrainingIsHarmless) {
  const Vocab vocab = train_all("a small corpus, small enough").vocab;
  const TrainingRecord record = {0.9995, 16, true, true, true};
  const std::string plain = make_sentencepiece(vocab), with = make_sentencepiece(vocab, &record);
  EXPECT_GT(with.size(), plain.size());
  const Vocab read =
      parse_sentencepiece(std::as_bytes(std::span<const char>(with)), "with a record");
  EXPECT_EQ(make_sentencepiece(read), plain);
}

}  // namespace
}  // namespace tinyllama
