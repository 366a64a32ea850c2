// Preparing tokens: the shards are the documents, whatever the threads, wherever it was stopped and
// begun again, and in however many parts.
#include "data/prepare.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/error.h"
#include "data/shard.h"
#include "support/assets.h"
#include "support/byte_vocab.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;
using Ids = std::vector<TokenId>;

Tokenizer byte_tokenizer() {
  Vocab vocab = testing::byte_vocab();
  vocab.add_dummy_prefix = false;
  vocab.pieces.push_back({"ab", -1, PieceType::normal});
  vocab.pieces.push_back({"a", -2, PieceType::normal});
  vocab.pieces.push_back({"b", -3, PieceType::normal});
  return Tokenizer(std::move(vocab));
}

void put(const std::string& path, const std::string& bytes) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// Every file of a folder but its manifests, which name it.
std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    files[entry.path().filename()] = read_text_file(entry.path());
  return files;
}

class Prepare : public ::testing::Test {
 protected:
  // Three files of more than a megabyte, so that there are several batches, with a few bad rows.
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    for (int file = 0; file < 3; file++) {
      std::string rows;
      for (int i = 0; rows.size() < 2'500'000; i++) {
        if (i % 1000 == 7) rows += "not a row\n";
        if (i % 1000 == 8) rows += "{\"text\":\"\"}\n";
        const std::string text = std::to_string(file) + "-" + std::to_string(i) +
                                 std::string(static_cast<size_t>(i * 37 % 900), 'a');
        texts_.push_back(text);
        rows += "{\"text\":\"" + text + "\"}\n";
      }
      put(*folder_ / ("in/" + std::to_string(file) + ".jsonl"), rows);
    }
  }
  static void TearDownTestSuite() { delete folder_; }

  static PrepareOptions options(const std::string& out) {
    PrepareOptions options;
    options.inputs = {*folder_ / "in"};
    options.out = *folder_ / out;
    options.shard_tokens = 700'000;
    return options;
  }

  static PrepareResult run(const PrepareOptions& options, int threads = 2,
                           const PrepareProgress& progress = {}) {
    static const Tokenizer tokenizer = byte_tokenizer();
    ThreadPool pool(threads);
    return prepare_tokens(tokenizer, options, pool, progress);
  }

  static std::string path(const std::string& name) { return *folder_ / name; }

  static inline TemporaryFolder* folder_ = nullptr;
  static inline std::vector<std::string> texts_;
};

TEST_F(Prepare, TheShardsAreTheDocuments) {
  const PrepareResult result = run(options("whole"));
  EXPECT_EQ(result.counts.documents, texts_.size());
  EXPECT_GT(result.counts.malformed, 10u);
  EXPECT_EQ(result.counts.malformed, result.counts.empty);
  ASSERT_FALSE(result.bad_rows.empty());
  EXPECT_NE(result.bad_rows[0].find("0.jsonl:8: not JSON"), std::string::npos)
      << result.bad_rows[0];
  const TokenFolder tokens(path("whole"));
  EXPECT_EQ(tokens.n_tokens(), result.counts.tokens);
  EXPECT_EQ(tokens.n_documents(), result.counts.documents);
  EXPECT_EQ(tokens.shards().size(), result.shards);
  EXPECT_GT(result.shards, 5u);
  const Tokenizer tokenizer = byte_tokenizer();
  size_t document = 0;
  for (const TokenShard& shard : tokens.shards()) {
    shard.verify();
    const auto starts = shard.documents();
    for (size_t i = 0; i < starts.size(); i++, document++) {
      const uint64_t end = i + 1 < starts.size() ? starts[i + 1] : shard.n_tokens();
      Ids ids(end - starts[i]);
      shard.read(starts[i], ids);
      Ids expected = tokenizer.encode(texts_[document]);
      expected.push_back(2);
      ASSERT_EQ(ids, expected) << document;
    }
    // It ends with the document that reached the size.
    EXPECT_LT(starts.back(), 700'000u);
    if (&shard != &tokens.shards().back()) {
      EXPECT_GE(shard.n_tokens(), 700'000u);
    }
  }
}

TEST_F(Prepare, ThreadsMakeNoDifference) {
  for (const int threads : {1, 2, 5}) run(options("threads" + std::to_string(threads)), threads);
  EXPECT_EQ(contents(path("threads1")), contents(path("threads2")));
  EXPECT_EQ(contents(path("threads1")), contents(path("threads5")));
}

TEST_F(Prepare, StoppedItGoesOn) {
  run(options("straight"));
  // Each run stops when it has worked on its first few megabytes.
  for (int stop = 0; stop < 2; stop++) {
    EXPECT_THROW(run(options("stopped"), 1,
                     [](uint64_t, uint64_t, const auto&) { throw Interrupted("stop"); }),
                 Interrupted);
    EXPECT_NE(error_of([&] { TokenFolder(path("stopped")); }).find("not finished"),
              std::string::npos);
    // What a kill would leave: half a shard, and one that no note counts.
    put(path("stopped/shard-000009.tok.123.partial"), "half");
    put(path("stopped/shard-000008.tok"), "whole, but not counted");
  }
  const PrepareResult result = run(options("stopped"));
  EXPECT_GT(result.before.tokens, 0u);
  EXPECT_LT(result.before.tokens, result.counts.tokens);
  EXPECT_EQ(result.counts.documents, texts_.size());
  EXPECT_EQ(contents(path("straight")), contents(path("stopped")));
  const PrepareResult again = run(options("stopped"));
  EXPECT_TRUE(again.was_complete);
  EXPECT_EQ(again.counts.documents, texts_.size());
}

TEST_F(Prepare, OtherOptionsAreRefused) {
  run(options("kept"));
  const auto before = contents(path("kept"));
  const auto refused = [&](const auto& change) {
    PrepareOptions changed = options("kept");
    change(changed);
    return error_of([&] { run(changed); });
  };
  EXPECT_NE(refused([](auto& o) { o.bos = true; }).find("bos was false, now it is true"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.corpus.fields = {"body"}; }).find("field was"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.shard_tokens = 5; }).find("shard_tokens was 700000"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.inputs[0] += "/1.jsonl"; }).find("input 1 was"),
            std::string::npos);
  EXPECT_NE(refused([](auto& o) { o.parts = 2; }).find("another number of parts"),
            std::string::npos);
  EXPECT_EQ(contents(path("kept")), before);
  put(path("strange/a.tok"), "");
  EXPECT_NE(error_of([&] { run(options("strange")); }).find("no manifest tells of"),
            std::string::npos);
  put(path("broken/manifest.json"), "{}");
  EXPECT_NE(error_of([&] { run(options("broken")); }).find("[prepare]"), std::string::npos);
  put(path("file"), "");
  EXPECT_NE(error_of([&] { run(options("file")); }).find("[prepare]"), std::string::npos);
}

TEST_F(Prepare, PartsAreTheWhole) {
  uint64_t documents = 0, tokens = 0;
  for (int part = 1; part <= 3; part++) {
    PrepareOptions share = options("parts");
    share.part = part;
    share.parts = 3;
    const PrepareResult result = run(share);
    EXPECT_EQ(result.files, 1u);
    documents += result.counts.documents;
    tokens += result.counts.tokens;
  }
  EXPECT_EQ(documents, texts_.size());
  const TokenFolder folder(path("parts"));
  EXPECT_EQ(folder.n_documents(), texts_.size());
  EXPECT_EQ(folder.n_tokens(), tokens);
  PrepareOptions fourth = options("four");
  fourth.parts = 4;
  EXPECT_NE(error_of([&] { run(fourth); }).find("fewer parts"), std::string::npos);
}

TEST_F(Prepare, EveryFileBelongsToOnePart) {
  std::vector<CorpusFile> files;
  for (int i = 0; i < 23; i++)
    files.push_back(
        {"f" + std::to_string(i), CorpusFormat::text, static_cast<uint64_t>(i % 5) * 100});
  for (const int parts : {1, 2, 7, 23}) {
    std::map<std::string, int> seen;
    for (int part = 1; part <= parts; part++) {
      const auto own = files_of_part(files, part, parts);
      EXPECT_FALSE(own.empty());
      for (const CorpusFile& file : own) seen[file.path]++;
    }
    EXPECT_EQ(seen.size(), files.size());
    for (const auto& [name, times] : seen) EXPECT_EQ(times, 1) << name;
  }
}

TEST_F(Prepare, AMalformedRowMayEndIt) {
  PrepareOptions strict = options("strict");
  strict.skip_bad_rows = false;
  const std::string message = error_of([&] { run(strict); });
  EXPECT_NE(message.find("0.jsonl:8: not JSON"), std::string::npos) << message;
  EXPECT_NE(message.find("--bad-rows skip"), std::string::npos) << message;
  EXPECT_EQ(run(options("strict")).counts.documents, texts_.size());
}

TEST_F(Prepare, NothingToPrepareIsAnError) {
  put(path("bad/a.jsonl"), "{\"body\":\"x\"}\n\n{\"text\":\" \"}\n");
  PrepareOptions none = options("none");
  none.inputs = {path("bad")};
  const std::string message = error_of([&] { run(none); });
  EXPECT_NE(message.find("no document in 1 files: 1 rows empty, 0 filtered out, 1 malformed: "),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("want a field text or content"), std::string::npos) << message;
  EXPECT_FALSE(fs::exists(path("none")));
}

TEST_F(Prepare, BosComesFirst) {
  put(path("bos-in/a.txt"), "ab");
  PrepareOptions with = options("bos");
  with.inputs = {path("bos-in")};
  with.bos = true;
  run(with);
  Ids ids(3);
  ASSERT_EQ(TokenFolder(path("bos")).n_tokens(), 3u);
  TokenFolder(path("bos")).read(0, ids);
  EXPECT_EQ(ids, (Ids{1, 259, 2}));
}

TEST_F(Prepare, ATokenizerWithoutEndIsRefused) {
  Vocab vocab = testing::byte_vocab();
  vocab.eos = kNoToken;
  const Tokenizer endless(vocab);
  ThreadPool pool(1);
  EXPECT_NE(error_of([&] {
              prepare_tokens(endless, options("endless"), pool, {});
            }).find("no end-of-sequence token"),
            std::string::npos);
}

}  // namespace
}  // namespace tinyllama
