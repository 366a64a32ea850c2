// The tokenizer against the sentencepiece library itself: equal ids and equal text on every corpus
// in the assets, on all of Unicode, on random bytes, on hard cases, and for random vocabularies.
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "text/tokenizer.h"
#include "text/utf8.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;

fs::path assets() {
  const char* root = std::getenv("TINYLLAMA_ASSETS");
  return fs::path(root != nullptr ? root : TINYLLAMA_SOURCE_DIR "/../shared") / "assets";
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

// --- sentencepiece's ModelProto, as far as a BPE vocabulary needs it
// -----------------------------------

struct Field {
  int number;
  uint64_t value;          // varint or fixed32
  std::string_view bytes;  // length-delimited
};

uint64_t read_varint(std::string_view& from) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = static_cast<unsigned char>(from.front());
    from.remove_prefix(1);
    value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return value;
  }
}

std::vector<Field> read_fields(std::string_view from) {
  std::vector<Field> fields;
  while (!from.empty()) {
    const uint64_t key = read_varint(from);
    Field field{static_cast<int>(key >> 3), 0, {}};
    if ((key & 7) == 0) {
      field.value = read_varint(from);
    } else if ((key & 7) == 5) {
      uint32_t word;
      std::memcpy(&word, from.data(), 4);
      field.value = word;
      from.remove_prefix(4);
    } else {
      const size_t length = read_varint(from);
      field.bytes = from.substr(0, length);
      from.remove_prefix(length);
    }
    fields.push_back(field);
  }
  return fields;
}

Vocab vocab_of_model(const std::string& model) {
  Vocab vocab;
  vocab.remove_extra_whitespaces = true;  // the proto's default
  for (const Field& field : read_fields(model)) {
    if (field.number == 1) {
      Piece piece;
      for (const Field& part : read_fields(field.bytes)) {
        if (part.number == 1) piece.text = part.bytes;
        if (part.number == 3) piece.type = static_cast<PieceType>(part.value);
        const auto bits = static_cast<uint32_t>(part.value);
        if (part.number == 2) std::memcpy(&piece.score, &bits, 4);
      }
      const auto id = static_cast<TokenId>(vocab.pieces.size());
      if (piece.type == PieceType::unknown) vocab.unk = id;
      if (piece.text == "<s>") vocab.bos = id;
      if (piece.text == "</s>") vocab.eos = id;
      vocab.pieces.push_back(piece);
    } else if (field.number == 2) {
      for (const Field& part : read_fields(field.bytes)) {
        if (part.number == 44) vocab.unk_surface = part.bytes;
      }
    } else if (field.number == 3) {
      for (const Field& part : read_fields(field.bytes)) {
        if (part.number == 3) vocab.add_dummy_prefix = part.value != 0;
        if (part.number == 4) vocab.remove_extra_whitespaces = part.value != 0;
      }
    }
  }
  return vocab;
}

void write_varint(std::string& to, uint64_t value) {
  for (; value >= 0x80; value >>= 7) to += static_cast<char>(value | 0x80);
  to += static_cast<char>(value);
}

void write_number(std::string& to, int field, uint64_t value) {
  write_varint(to, static_cast<uint64_t>(field) << 3);
  write_varint(to, value);
}

void write_bytes(std::string& to, int field, std::string_view bytes) {
  write_varint(to, static_cast<uint64_t>(field) << 3 | 2);
  write_varint(to, bytes.size());
  to += bytes;
}

std::string model_of_vocab(const Vocab& vocab) {
  std::string model, trainer, normalizer;
  bool has_bytes = false;
  for (const Piece& piece : vocab.pieces) {
    std::string part;
    write_bytes(part, 1, piece.text);
    write_varint(part, 2 << 3 | 5);
    char score[4];
    std::memcpy(score, &piece.score, 4);
    part.append(score, 4);
    write_number(part, 3, static_cast<uint64_t>(piece.type));
    write_bytes(model, 1, part);
    has_bytes = has_bytes || piece.type == PieceType::byte;
  }
  write_number(trainer, 3, 2);  // BPE
  write_number(trainer, 35, has_bytes ? 1 : 0);
  write_bytes(trainer, 44, vocab.unk_surface);
  write_bytes(model, 2, trainer);
  write_bytes(normalizer, 1, "identity");
  write_number(normalizer, 3, vocab.add_dummy_prefix ? 1 : 0);
  write_number(normalizer, 4, vocab.remove_extra_whitespaces ? 1 : 0);
  write_bytes(model, 3, normalizer);
  return model;
}

// --- one vocabulary in both implementations
// -----------------------------------------------------------

std::string printable(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, 300)) {
    char hex[8];
    std::snprintf(hex, sizeof hex, "\\x%02X", static_cast<unsigned char>(c));
    if (c >= ' ' && c <= '~') {
      shown += c;
    } else {
      shown += hex;
    }
  }
  return shown;
}

class Pair {
 public:
  explicit Pair(const std::string& model) : ours_(vocab_of_model(model)) {
    loaded_ = theirs_.LoadFromSerializedProto(model).ok();
  }

  bool loaded() const { return loaded_; }
  const Tokenizer& ours() const { return ours_; }

  // Both encode, ids and the text decoded from them are compared.
  bool agree(std::string_view text) {
    ids_.clear();
    ours_.encode(text, {}, scratch_, ids_);
    std::vector<int> want;
    EXPECT_TRUE(theirs_.Encode(text, &want).ok());
    EXPECT_EQ(ids_, want) << "text (" << text.size() << " bytes): " << printable(text);
    ++n_texts_;
    n_bytes_ += text.size();
    return ids_ == want && decodes_alike(ids_);
  }

  bool decodes_alike(const std::vector<TokenId>& ids) {
    std::string want;
    EXPECT_TRUE(theirs_.Decode(ids, &want).ok());
    const std::string got = ours_.decode(ids);
    EXPECT_EQ(printable(got), printable(want));
    return got == want;
  }

  size_t n_texts() const { return n_texts_; }
  size_t n_bytes() const { return n_bytes_; }

 private:
  Tokenizer ours_;
  sentencepiece::SentencePieceProcessor theirs_;
  bool loaded_ = false;
  EncodeScratch scratch_;
  std::vector<TokenId> ids_;
  size_t n_texts_ = 0, n_bytes_ = 0;
};

void append_random_char(std::string& to, std::mt19937_64& random) {
  static constexpr char32_t kLimits[] = {0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000};
  char32_t c;
  do {
    c = static_cast<char32_t>(random() % kLimits[random() % 6]);
  } while (c >= 0xD800 && c < 0xE000);
  append_utf8(to, c);
}

// --- real vocabularies
// --------------------------------------------------------------------------------

class Oracle : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const fs::path path = assets() / GetParam();
    if (!fs::exists(path)) GTEST_SKIP() << path << " is not there (TINYLLAMA_ASSETS)";
    pair_ = std::make_unique<Pair>(read_file(path));
    ASSERT_TRUE(pair_->loaded());
  }
  void TearDown() override {
    if (pair_ == nullptr) return;
    RecordProperty("texts", std::to_string(pair_->n_texts()));
    RecordProperty("bytes", std::to_string(pair_->n_bytes()));
  }

  std::unique_ptr<Pair> pair_;
};

INSTANTIATE_TEST_SUITE_P(Models, Oracle,
                         testing::Values("tokenizer/tokenizer.model",
                                         "models/stories260K/tok512.model",
                                         "models/EN10-tok105/tok105.model"),
                         [](const auto& param) {
                           std::string name = fs::path(param.param).stem().string();
                           return name == "tokenizer" ? std::string("llama32000") : name;
                         });

TEST_P(Oracle, EveryLineOfEveryCorpus) {
  for (const auto& entry : fs::recursive_directory_iterator(assets() / "corpora")) {
    const std::string extension = entry.path().extension().string();
    if (extension != ".txt" && extension != ".jsonl" && extension != ".json") continue;
    std::istringstream file(read_file(entry.path()));
    for (std::string line; std::getline(file, line);) {
      ASSERT_TRUE(pair_->agree(line)) << entry.path();
    }
  }
  EXPECT_GT(pair_->n_bytes(), 10'000'000u);
}

// The library is slow on long texts, so only the first part of each file.
TEST_P(Oracle, WholeFiles) {
  for (const char* name :
       {"tinyshakespeare/input.txt", "wikitext-2/test.txt",
        "tinystories/yuninxia_tinystories_val.txt", "web-samples/redpajama-arxiv/arxiv.jsonl"}) {
    ASSERT_TRUE(pair_->agree(read_file(assets() / "corpora" / name).substr(0, 300'000))) << name;
  }
}

TEST_P(Oracle, RandomBytes) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 20'000; ++i) {
    std::string text(random() % 60, '\0');
    for (char& c : text) c = static_cast<char>(random());
    ASSERT_TRUE(pair_->agree(text));
  }
}

// Bytes of valid characters, cut and mixed, so that every kind of malformed sequence occurs.
TEST_P(Oracle, BrokenUnicode) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (size_t n = random() % 20; n > 0; --n) {
      append_random_char(text, random);
      if (random() % 4 == 0) text.pop_back();
      if (random() % 8 == 0) text += static_cast<char>(0x80 | random() % 128);
      if (random() % 4 == 0) text += ' ';
    }
    ASSERT_TRUE(pair_->agree(text));
  }
}

TEST_P(Oracle, RandomUnicode) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (size_t n = random() % 40; n > 0; --n) append_random_char(text, random);
    ASSERT_TRUE(pair_->agree(text));
  }
}

// Every code point alone, and every run of 16 neighbours.
TEST_P(Oracle, AllOfUnicode) {
  std::string run;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    // Beyond the first two planes no vocabulary here has pieces: every 16th is enough alone.
    if (c < 0x20000 || c % 16 == 0) {
      std::string alone;
      append_utf8(alone, c);
      ASSERT_TRUE(pair_->agree(alone)) << std::hex << static_cast<uint32_t>(c);
    }
    append_utf8(run, c);
    if (c % 16 == 15) {
      ASSERT_TRUE(pair_->agree(run)) << std::hex << static_cast<uint32_t>(c);
      run.clear();
    }
  }
}

TEST_P(Oracle, Runs) {
  for (const char* unit : {"a",
                           " ",
                           "  a",
                           "\n",
                           "ab",
                           "aab",
                           "=",
                           "-",
                           ".",
                           "\t",
                           "the",
                           " the",
                           "0",
                           "\xC3\xA9",
                           "\xE4\xB8\xAD",
                           "\xE2\x96\x81",
                           "\xE2\x96\x81 ",
                           "\xF0\x9F\xA6\x99",
                           "\xFF",
                           "\xEF\xBF\xBD",
                           "lo",
                           "ing",
                           "x=",
                           "\xD0\xB5",
                           "\xD1\x82\xD0\xBE"}) {
    std::string text;
    for (int n = 1; n <= 600; ++n) {
      text += unit;
      if (n > 80 && n % 40 != 0) continue;
      ASSERT_TRUE(pair_->agree(text)) << n << " times " << unit;
      ASSERT_TRUE(pair_->agree("x" + text + "y")) << n << " times " << unit;
    }
  }
  ASSERT_TRUE(pair_->agree(std::string(30'000, 'a')));
  ASSERT_TRUE(pair_->agree(std::string(30'000, ' ')));
  ASSERT_TRUE(pair_->agree(std::string("\0a\0\0 \0", 6)));
  ASSERT_TRUE(pair_->agree(std::string(100, '\0')));
  ASSERT_TRUE(pair_->agree(""));
}

// One word of random letters, longer than what a scan handles.
TEST_P(Oracle, LongWords) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 3'000; ++i) {
    const size_t n_letters = 1 + random() % 26;
    std::string text(random() % 300, ' ');
    for (char& c : text) c = static_cast<char>('a' + random() % n_letters);
    ASSERT_TRUE(pair_->agree(text));
  }
}

TEST_P(Oracle, DecodesAnyIds) {
  std::mt19937_64 random(5);
  const auto size = static_cast<uint64_t>(pair_->ours().size());
  for (int i = 0; i < 50'000; ++i) {
    std::vector<TokenId> ids(random() % 12);
    // Half of them from the start, where control and byte pieces are.
    for (TokenId& id : ids) {
      id = static_cast<TokenId>(random() %
                                (random() % 2 == 0 ? size : std::min<uint64_t>(size, 262)));
    }
    ASSERT_TRUE(pair_->decodes_alike(ids)) << testing::PrintToString(ids);
  }
}

// --- other sources of the 32000 pieces
// ----------------------------------------------------------------

TEST(LlamaVocab, LlamaCppVectors) {
  const fs::path folder = assets() / "tokenizer" / "llama.cpp";
  const std::string inputs = read_file(folder / "ggml-vocab-llama-spm.gguf.inp");
  if (inputs.empty()) GTEST_SKIP() << folder << " is not there (TINYLLAMA_ASSETS)";
  const Tokenizer tokenizer(vocab_of_model(read_file(assets() / "tokenizer" / "tokenizer.model")));
  std::istringstream outputs(read_file(folder / "ggml-vocab-llama-spm.gguf.out"));
  const std::string separator = "\n__ggml_vocab_test__\n";
  int n = 0;
  for (size_t at = 0; at < inputs.size(); ++n) {
    const size_t end = std::min(inputs.find(separator, at), inputs.size());
    std::string line;
    std::getline(outputs, line);
    std::istringstream numbers(line);
    const std::vector<TokenId> want{std::istream_iterator<TokenId>(numbers), {}};
    EXPECT_EQ(tokenizer.encode(inputs.substr(at, end - at)), want) << printable(inputs.substr(at));
    at = end + separator.size();
  }
  EXPECT_EQ(n, 46);
}

// The merges of tokenizer.json give what the scores give.
TEST(LlamaVocab, MergesOfTokenizerJson) {
  const std::string source = read_file(assets() / "tokenizer" / "derived" / "tokenizer.json");
  if (source.empty()) GTEST_SKIP() << "derived/tokenizer.json is not there (TINYLLAMA_ASSETS)";
  const Vocab scored = vocab_of_model(read_file(assets() / "tokenizer" / "tokenizer.model"));
  const Tokenizer by_score(scored);
  Vocab vocab = scored;
  for (Piece& piece : vocab.pieces) piece.score = 0;
  const nlohmann::json json = nlohmann::json::parse(source);
  for (const auto& [text, id] : json["model"]["vocab"].items()) {
    ASSERT_EQ(vocab.pieces.at(id.get<size_t>()).text, text);
  }
  for (const std::string merge : json["model"]["merges"]) {
    const size_t space = merge.find(' ');
    vocab.merges.emplace_back(*by_score.id_of(merge.substr(0, space)),
                              *by_score.id_of(merge.substr(space + 1)));
  }
  ASSERT_EQ(vocab.merges.size(), 61249u);
  const Tokenizer by_merges(std::move(vocab));

  EncodeScratch scratch_a, scratch_b;
  std::vector<TokenId> a, b;
  for (const auto& entry : fs::recursive_directory_iterator(assets() / "corpora")) {
    const std::string extension = entry.path().extension().string();
    if (extension != ".txt" && extension != ".jsonl" && extension != ".json") continue;
    a.clear();
    b.clear();
    const std::string text = read_file(entry.path());
    by_score.encode(text, {}, scratch_a, a);
    by_merges.encode(text, {}, scratch_b, b);
    ASSERT_TRUE(a == b) << entry.path();
  }
  std::mt19937_64 random(6);
  for (int i = 0; i < 100'000; ++i) {
    std::string text;
    for (size_t n = random() % 40; n > 0; --n) {
      if (random() % 2 == 0) {
        text += static_cast<char>(random() % 4 == 0 ? ' ' : 'a' + random() % 5);
      } else {
        append_random_char(text, random);
      }
    }
    ASSERT_EQ(by_score.encode(text), by_merges.encode(text)) << printable(text);
  }
}

// --- random vocabularies
// ------------------------------------------------------------------------------

// A few characters, all kinds of pieces over them, few distinct scores: much more goes wrong here
// than with a vocabulary that was trained.
Vocab random_vocab(std::mt19937_64& random) {
  static const std::vector<std::string> alphabet = {"a",        "b",           "c", "\xE2\x96\x81",
                                                    "\xC3\xA9", "\xE4\xB8\xAD"};
  Vocab vocab;
  vocab.add_dummy_prefix = random() % 2 == 0;
  vocab.remove_extra_whitespaces = random() % 2 == 0;
  if (random() % 2 == 0) vocab.unk_surface = "?";
  std::vector<std::string> texts = {"<unk>", "<s>", "</s>"};
  const auto add = [&](const std::string& text, PieceType type) {
    if (type != PieceType::unknown && std::find(texts.begin() + (vocab.pieces.size() < 3 ? 3 : 0),
                                                texts.end(), text) != texts.end()) {
      return;
    }
    texts.push_back(text);
    vocab.pieces.push_back({text, static_cast<float>(-static_cast<int>(random() % 12)), type});
  };
  vocab.pieces = {{"<unk>", 0, PieceType::unknown},
                  {"<s>", 0, PieceType::control},
                  {"</s>", 0, PieceType::control}};
  vocab.unk = 0;
  if (random() % 2 == 0) {
    for (int b = 0; b < 256; ++b) {
      char name[8];
      std::snprintf(name, sizeof name, "<0x%02X>", b);
      add(name, PieceType::byte);
    }
  }
  const bool user_defined = random() % 2 == 0, unused = random() % 3 == 0;
  for (const std::string& c : alphabet) {
    if (random() % 5 != 0) add(c, PieceType::normal);
  }
  for (size_t n = random() % 40; n > 0; --n) {
    std::string text;
    for (size_t length = 2 + random() % 4; length > 0; --length)
      text += alphabet[random() % alphabet.size()];
    const uint64_t kind = random() % 10;
    add(text, kind == 0 && user_defined ? PieceType::user_defined
              : kind < 4 && unused      ? PieceType::unused
                                        : PieceType::normal);
  }
  return vocab;
}

TEST(RandomVocabularies, AgreeOnRandomText) {
  static const std::vector<std::string> units = {
      "a", "b",  "c",    " ",    "\xE2\x96\x81", "\xC3\xA9", "\xE4\xB8\xAD",
      "z", "\n", "\xFF", "\xC3", "<s>",          "ab",       "  "};
  std::mt19937_64 random(7);
  for (int v = 0; v < 1500; ++v) {
    const Vocab vocab = random_vocab(random);
    Pair pair(model_of_vocab(vocab));
    ASSERT_TRUE(pair.loaded());
    for (int i = 0; i < 150; ++i) {
      std::string text;
      const size_t n_units = 1 + random() % units.size();
      for (size_t n = random() % (i % 10 == 0 ? 200 : 30); n > 0; --n)
        text += units[random() % n_units];
      ASSERT_TRUE(pair.agree(text)) << "vocabulary " << v;
    }
    for (int i = 0; i < 30; ++i) {
      std::vector<TokenId> ids(random() % 8);
      for (TokenId& id : ids) id = static_cast<TokenId>(random() % vocab.pieces.size());
      ASSERT_TRUE(pair.decodes_alike(ids)) << "vocabulary " << v << testing::PrintToString(ids);
    }
  }
}

// --- speed, printed and not asserted
// ------------------------------------------------------------------

TEST(Speed, AgainstTheLibrary) {
  const std::string model = read_file(assets() / "tokenizer" / "tokenizer.model");
  const std::string text =
      read_file(assets() / "corpora" / "wikitext-2" / "wikitext2_train_5k.txt");
  if (model.empty() || text.empty()) GTEST_SKIP() << "no assets (TINYLLAMA_ASSETS)";
  const Tokenizer tokenizer(vocab_of_model(model));
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.LoadFromSerializedProto(model).ok());
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);

  const auto megabytes_per_second = [](size_t bytes, const auto& body) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    return static_cast<double>(bytes) / 1e6 / seconds.count();
  };
  EncodeScratch scratch;
  std::vector<TokenId> ids;
  const double our_lines = megabytes_per_second(text.size(), [&] {
    for (const std::string& line : lines) {
      ids.clear();
      tokenizer.encode(line, {}, scratch, ids);
    }
  });
  const double our_file = megabytes_per_second(text.size(), [&] { ids = tokenizer.encode(text); });
  std::vector<int> theirs;
  const double their_lines = megabytes_per_second(text.size(), [&] {
    for (const std::string& line : lines) EXPECT_TRUE(library.Encode(line, &theirs).ok());
  });
  const std::string part = text.substr(0, 300'000);
  const double their_file =
      megabytes_per_second(part.size(), [&] { EXPECT_TRUE(library.Encode(part, &theirs).ok()); });
  std::printf(
      "lines: %.1f MB/s (sentencepiece %.1f); whole file: %.1f MB/s (sentencepiece %.1f on 300 "
      "kB)\n",
      our_lines, their_lines, our_file, their_file);
}

}  // namespace
}  // namespace tinyllama
