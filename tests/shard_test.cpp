// Token shards: what is written is read back, foreign formats by their own description, and no
// damaged byte goes unnoticed.
#include "data/shard.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "support/assets.h"
#include "support/byte_vocab.h"

namespace tinyllama {
namespace {

using testing::TemporaryFolder;
using Ids = std::vector<TokenId>;

void put(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
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

Ids all_of(const TokenShard& shard) {
  Ids ids(shard.n_tokens());
  shard.read(0, ids);
  return ids;
}

const std::vector<Ids> kDocuments = {{5, 6, 2}, {2}, {7, 8, 9, 10, 2}};
const Ids kJoined = {5, 6, 2, 2, 7, 8, 9, 10, 2};

void write_shard(const std::string& path, const ShardVocab& vocab) {
  ShardWriter writer(vocab);
  for (const Ids& document : kDocuments) writer.add(document);
  writer.write(path);
  EXPECT_EQ(writer.n_tokens(), 0u);
}

TEST(Shard, RoundTripInBothWidths) {
  const TemporaryFolder folder;
  for (const uint32_t size : {300u, 65536u, 65537u}) {
    const std::string path = folder / "a.tok";
    write_shard(path, {77, size, 2});
    const TokenShard shard(path);
    EXPECT_STREQ(shard.format(), "tinyllama");
    EXPECT_EQ(shard.type(), size <= 65536 ? TokenType::u16 : TokenType::u32);
    EXPECT_EQ(shard.vocab(), (ShardVocab{77, size, 2}));
    EXPECT_EQ(all_of(shard), kJoined);
    const auto starts = shard.documents();
    EXPECT_EQ(std::vector<uint64_t>(starts.begin(), starts.end()),
              (std::vector<uint64_t>{0, 3, 4}));
    shard.verify();
    Ids part(4);
    shard.read(5, part);
    EXPECT_EQ(part, (Ids{8, 9, 10, 2}));
  }
}

TEST(Shard, TheLargestIdsSurvive) {
  const TemporaryFolder folder;
  for (const uint32_t size : {65536u, 1u << 20}) {
    ShardWriter writer({1, size, 0});
    const Ids document = {static_cast<TokenId>(size - 1), 0};
    writer.add(document);
    writer.write(folder / "a.tok");
    EXPECT_EQ(all_of(TokenShard(folder / "a.tok")), document);
  }
}

TEST(Shard, NoDamagedByteAndNoCutGoesUnnoticed) {
  const TemporaryFolder folder;
  write_shard(folder / "a.tok", {77, 300, 2});
  const std::string good = read_text_file(folder / "a.tok");
  const auto check = [&](const std::string& bytes) {
    put(folder / "b.tok", bytes);
    return error_of([&] { TokenShard(folder / "b.tok").verify(); });
  };
  EXPECT_EQ(check(good), "no error");
  const size_t tokens_end = 64 + 2 * kJoined.size();
  for (size_t at = 0; at < good.size(); at++) {
    if (at >= tokens_end && at < (tokens_end + 7) / 8 * 8) continue;  // padding
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    EXPECT_TRUE(check(bad).starts_with("[shard] ")) << at;
    EXPECT_TRUE(check(good.substr(0, at)).starts_with("[shard] ")) << at;
  }
  EXPECT_NE(check(good + "x").find("does not hold exactly"), std::string::npos);
}

TEST(Shard, LitPackedDatasets) {
  const TemporaryFolder folder;
  const auto file = [](char code, uint64_t n, const std::string& body, uint64_t version = 1) {
    return "LITPKDS" + raw<uint64_t>({version}) + code + raw<uint64_t>({n}) + body;
  };
  const auto read = [&](const std::string& bytes) {
    put(folder / "a.bin", bytes);
    const TokenShard shard(folder / "a.bin");
    EXPECT_STREQ(shard.format(), "LITPKDS");
    EXPECT_FALSE(shard.has_documents());
    EXPECT_TRUE(shard.documents().empty());
    return all_of(shard);
  };
  const Ids small = {1, 2, 100};
  EXPECT_EQ(read(file(1, 3, raw<uint8_t>({1, 2, 100}))), small);
  EXPECT_EQ(read(file(2, 3, raw<int8_t>({1, 2, 100}))), small);
  EXPECT_EQ(read(file(3, 3, raw<int16_t>({1, 2, 100}))), small);
  EXPECT_EQ(read(file(4, 3, raw<int32_t>({1, 2, 100}))), small);
  EXPECT_EQ(read(file(5, 3, raw<int64_t>({1, 2, 100}))), small);
  EXPECT_EQ(read(file(8, 3, raw<uint16_t>({1, 2, 65499}))), (Ids{1, 2, 65499}));
  const auto message = [&](const std::string& bytes) { return error_of([&] { read(bytes); }); };
  EXPECT_NE(message(file(6, 1, raw<float>({1}))).find("whole numbers"), std::string::npos);
  EXPECT_NE(message(file(8, 1, "ab", 2)).find("version 1, got 2"), std::string::npos);
  EXPECT_NE(message(file(8, 2, "abc")).find("does not hold exactly"), std::string::npos);
  EXPECT_NE(message(file(8, UINT64_MAX / 2 + 2, "abcd")).find("does not hold"), std::string::npos);
  EXPECT_NE(message(file(3, 1, raw<int16_t>({-1}))).find("not in [0,"), std::string::npos);
  EXPECT_NE(message(file(5, 1, raw<int64_t>({1LL << 40}))).find("not in [0,"), std::string::npos);
}

TEST(Shard, LlmcFiles) {
  const TemporaryFolder folder;
  const auto file = [](int32_t magic, int32_t version, int32_t n, const std::string& body) {
    std::vector<int32_t> header(256);
    header[0] = magic, header[1] = version, header[2] = n;
    return raw(header) + body;
  };
  const auto read = [&](const std::string& bytes) {
    put(folder / "a.bin", bytes);
    const TokenShard shard(folder / "a.bin");
    EXPECT_STREQ(shard.format(), "llm.c");
    return all_of(shard);
  };
  EXPECT_EQ(read(file(20240520, 1, 2, raw<uint16_t>({50256, 7}))), (Ids{50256, 7}));
  EXPECT_EQ(read(file(20240801, 7, 2, raw<uint32_t>({128000, 7}))), (Ids{128000, 7}));
  const auto message = [&](const std::string& bytes) { return error_of([&] { read(bytes); }); };
  EXPECT_NE(message(file(20240520, 7, 0, "")).find("version 1, got 7"), std::string::npos);
  EXPECT_NE(message(file(20240520, 1, -1, "")).find("got -1"), std::string::npos);
  EXPECT_NE(message(file(20240520, 1, 2, "abc")).find("does not hold exactly"), std::string::npos);
  EXPECT_NE(message(file(20240520, 1, 2, "").substr(0, 1000)).find("truncated"), std::string::npos);
  EXPECT_NE(message("something else").find("another kind of file"), std::string::npos);
  EXPECT_NE(message("").find("an empty file"), std::string::npos);
}

TEST(Shard, AFolderIsOneSequence) {
  const TemporaryFolder folder;
  write_shard(folder / "b.tok", {77, 300, 2});
  ShardWriter writer({77, 300, 2});
  writer.add(Ids{100, 2});
  writer.write(folder / "a.tok");
  put(folder / "manifest.json", "{}");
  const TokenFolder tokens(folder / "");
  ASSERT_EQ(tokens.shards().size(), 2u);
  EXPECT_EQ(tokens.n_tokens(), 11u);
  EXPECT_EQ(tokens.n_documents(), 4u);
  EXPECT_TRUE(tokens.has_documents());
  EXPECT_EQ(tokens.shard_of(1), 0u);
  EXPECT_EQ(tokens.shard_of(2), 1u);
  EXPECT_EQ(tokens.first_token(1), 2u);
  Ids all(11);
  tokens.read(0, all);
  EXPECT_EQ(all, (Ids{100, 2, 5, 6, 2, 2, 7, 8, 9, 10, 2}));
  Ids across(2);
  tokens.read(1, across);
  EXPECT_EQ(across, (Ids{2, 5}));
  EXPECT_EQ(TokenFolder(folder / "a.tok").n_tokens(), 2u);

  put(folder / "unfinished.json", "{}");
  EXPECT_NE(error_of([&] { TokenFolder(folder / ""); }).find("run it again"), std::string::npos);
  std::filesystem::remove(folder / "unfinished.json");
  write_shard(folder / "c.tok", {78, 300, 2});
  EXPECT_NE(error_of([&] { TokenFolder(folder / ""); }).find("another tokenizer"),
            std::string::npos);
  const TemporaryFolder empty;
  EXPECT_NE(error_of([&] { TokenFolder(empty / ""); }).find("got none"), std::string::npos);
  EXPECT_NE(error_of([&] { TokenFolder(empty / "absent"); }).find("absent"), std::string::npos);
}

TEST(Shard, TheFingerprintIsThePieces) {
  Vocab vocab = testing::byte_vocab();
  const uint64_t before = vocab_fingerprint(vocab);
  vocab.pieces[5].score = -7;
  EXPECT_EQ(vocab_fingerprint(vocab), before);
  std::swap(vocab.pieces[5], vocab.pieces[6]);
  EXPECT_NE(vocab_fingerprint(vocab), before);
}

}  // namespace
}  // namespace tinyllama
