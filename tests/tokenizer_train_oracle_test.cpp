// Our trainer against the sentencepiece library: it loads what we train and gives the same ids, and
// its own trainer, on the same corpus, makes nearly the same pieces that compress alike.
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <random>
#include <set>
#include <sstream>

#include "base/file.h"
#include "formats/sentencepiece_model.h"
#include "support/assets.h"
#include "text/tokenizer.h"
#include "text/tokenizer_train.h"
#include "text/utf8.h"

namespace tinyllama {
namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

struct Trained {
  std::string model;  // as a file holds it
  TrainedTokenizer result;
};

Trained train(const std::string& corpus, const TokenizerTrainOptions& options) {
  WordCounts words;
  words.add(corpus);
  Trained trained;
  trained.result = train_tokenizer(words, options);
  const TrainingRecord record = {options.character_coverage, options.max_piece_length, true, true,
                                 true};
  trained.model = make_sentencepiece(trained.result.vocab, &record);
  return trained;
}

// SentencePiece's trainer with Llama's settings.
std::string train_theirs(const std::string& corpus, const TokenizerTrainOptions& options) {
  struct Lines : sentencepiece::SentenceIterator {
    explicit Lines(const std::string& text) : lines(lines_of(text)) {}
    bool done() const override { return at == lines.size(); }
    void Next() override { at++; }
    const std::string& value() const override { return lines[at]; }
    sentencepiece::util::Status status() const override { return {}; }
    std::vector<std::string> lines;
    size_t at = 0;
  } lines(corpus);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      {{"model_type", "bpe"},
       {"vocab_size", std::to_string(options.vocab_size)},
       {"character_coverage", std::to_string(options.character_coverage)},
       {"max_sentencepiece_length", std::to_string(options.max_piece_length)},
       {"byte_fallback", "true"},
       {"split_digits", "true"},
       {"allow_whitespace_only_pieces", "true"},
       {"normalization_rule_name", "identity"},
       {"remove_extra_whitespaces", "false"},
       {"max_sentence_length", "1000000"},
       {"num_threads", "1"},
       {"minloglevel", "2"}},
      &lines, &model);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return model;
}

Vocab vocab_of(const std::string& model) {
  return parse_sentencepiece(std::as_bytes(std::span<const char>(model)), "a trained model");
}

// A model in the library and in our tokenizer.
class Pair {
 public:
  explicit Pair(const std::string& model) : ours_(vocab_of(model)) {
    EXPECT_TRUE(theirs_.LoadFromSerializedProto(model).ok());
  }

  bool agree(std::string_view text) {
    std::vector<int> want;
    EXPECT_TRUE(theirs_.Encode(text, &want).ok());
    const std::vector<TokenId> got = ours_.encode(text);
    EXPECT_EQ(got, want) << "text: " << to_valid_utf8(text.substr(0, 200));
    std::string decoded;
    EXPECT_TRUE(theirs_.Decode(want, &decoded).ok());
    EXPECT_EQ(ours_.decode(got), decoded);
    n_tokens_ += got.size();
    return got == want;
  }

  size_t n_tokens() const { return n_tokens_; }

 private:
  Tokenizer ours_;
  sentencepiece::SentencePieceProcessor theirs_;
  size_t n_tokens_ = 0;
};

struct Corpus {
  const char* name;
  const char* path;  // below assets/corpora
  int vocab_size;
};

class TrainOracle : public ::testing::TestWithParam<Corpus> {
 protected:
  void SetUp() override {
    const std::string path = std::string("assets/corpora/") + GetParam().path;
    TINYLLAMA_NEEDS_ASSET(path);
    corpus_ = read_text_file(testing::asset(path)).substr(0, 1'500'000);
    corpus_.resize(corpus_.rfind('\n') + 1);
    // WikiText writes rare words so; the library's trainer leaves that out, ours takes it as text.
    for (size_t at = 0; (at = corpus_.find("<unk>", at)) != std::string::npos;)
      corpus_.erase(at, 5);
    options_.vocab_size = GetParam().vocab_size;
  }

  std::string corpus_;
  TokenizerTrainOptions options_;
};

INSTANTIATE_TEST_SUITE_P(
    Corpora, TrainOracle,
    ::testing::Values(Corpus{"stories", "tinystories/mines_tinystories_10k.txt", 2048},
                      Corpus{"wikipedia", "wikitext-2/test.txt", 4096},
                      Corpus{"articles", "web-samples/redpajama-arxiv/arxiv.jsonl", 4096}),
    [](const auto& param) { return param.param.name; });

TEST_P(TrainOracle, TheLibraryGivesTheSameIds) {
  const Trained trained = train(corpus_, options_);
  Pair pair(trained.model);
  for (const std::string& line : lines_of(corpus_)) ASSERT_TRUE(pair.agree(line));
  EXPECT_EQ(pair.n_tokens(), trained.result.n_tokens) << "as the trainer foretold";

  std::mt19937_64 random(1);
  for (int i = 0; i < 3000; i++) {
    std::string bytes(random() % 60, '\0'), digits(random() % 30, '0'), mixed;
    for (char& c : bytes) c = static_cast<char>(random());
    for (char& c : digits) c = "0123456789 .,-"[random() % 14];
    for (size_t n = random() % 20; n > 0; n--) {
      const size_t at = random() % corpus_.size();
      mixed += corpus_.substr(at, random() % 12);
    }
    ASSERT_TRUE(pair.agree(bytes));
    ASSERT_TRUE(pair.agree(digits));
    ASSERT_TRUE(pair.agree(mixed));
  }
}

TEST_P(TrainOracle, ItsOwnTrainerMakesNearlyTheSame) {
  const Trained trained = train(corpus_, options_);
  const std::string model = train_theirs(corpus_, options_);
  const Vocab theirs = vocab_of(model);
  const std::vector<Piece>& ours = trained.result.vocab.pieces;
  ASSERT_EQ(theirs.pieces.size(), ours.size());
  std::set<std::string> pieces;
  for (const Piece& piece : theirs.pieces) pieces.insert(piece.text);
  const auto common = std::count_if(
      ours.begin(), ours.end(), [&](const Piece& piece) { return pieces.contains(piece.text); });
  Pair pair(model);
  for (const std::string& line : lines_of(corpus_)) ASSERT_TRUE(pair.agree(line));
  const double n_bytes = static_cast<double>(corpus_.size());
  const double per_byte = static_cast<double>(trained.result.n_tokens) / n_bytes;
  const double their_per_byte = static_cast<double>(pair.n_tokens()) / n_bytes;
  std::printf("%s: %d of %zu pieces in common; tokens per byte %.5f, sentencepiece's %.5f\n",
              GetParam().name, static_cast<int>(common), ours.size(), per_byte, their_per_byte);
  EXPECT_GE(static_cast<double>(common), 0.98 * static_cast<double>(ours.size()));
  EXPECT_NEAR(per_byte, their_per_byte, 0.01 * their_per_byte);
}

// Many scripts, marks, digits, tabs and runs of spaces: the same model from either trainer but for
// what the two do differently by intent.
TEST(TrainOracleMixed, ScriptsAreCutAlike) {
  const std::vector<std::string> units = {"don't",
                                          "x=y",
                                          "12",
                                          "3x",
                                          "foo\u4E2D\u3042\u30FC",
                                          "\u0431\u0432\u0433",
                                          "a-b",
                                          "  ",
                                          "if(a)",
                                          "\t",
                                          "nine",
                                          "\u0915\u093F\u0924",
                                          "\u0661\u0662",
                                          "z\u03B1",
                                          "\uD55C\uAD6D",
                                          "caf\u00E9",
                                          "(",
                                          "...",
                                          "\u4E2D\u6587",
                                          "nonna",
                                          "\u30A2\u30A4"};
  std::mt19937_64 random(3);
  std::string corpus;
  for (int line = 0; line < 400; line++) {
    for (size_t n = 1 + random() % 12; n > 0; n--) {
      corpus += units[std::min(random() % units.size(), random() % units.size())];
      if (random() % 3 != 0) corpus += ' ';
    }
    corpus += '\n';
  }
  const TokenizerTrainOptions options = {.vocab_size = 360, .character_coverage = 1};
  const Trained trained = train(corpus, options);
  const Vocab theirs = vocab_of(train_theirs(corpus, options));
  std::set<std::string> a, b;
  for (const Piece& piece : trained.result.vocab.pieces) a.insert(piece.text);
  for (const Piece& piece : theirs.pieces) b.insert(piece.text);
  std::vector<std::string> only_one;
  std::set_symmetric_difference(a.begin(), a.end(), b.begin(), b.end(),
                                std::back_inserter(only_one));
  EXPECT_LE(only_one.size(), 4u) << ::testing::PrintToString(only_one);
  Pair pair(trained.model);
  for (const std::string& line : lines_of(corpus)) ASSERT_TRUE(pair.agree(line));
  EXPECT_EQ(pair.n_tokens(), trained.result.n_tokens);
}

}  // namespace
}  // namespace tinyllama
