// Parquet files, written here byte by byte in every way that is supported, the real one of the
// assets, and ones with every byte damaged.
#include "data/parquet.h"

#include <gtest/gtest.h>
#include <fstream>

#include "base/error.h"
#include "base/file.h"
#include "data/corpus.h"
#include "support/assets.h"
#include "support/parquet_writer.h"

namespace tinyllama {
namespace {

using testing::ParquetShape;
using testing::ParquetValue;
using testing::ParquetValues;
using testing::ParquetWriter;
using testing::raw32;
using testing::ThriftStruct;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

ParquetValues read_all(const std::string& bytes, const std::string& column = "text") {
  const ParquetFile file = parse_parquet(bytes_of(bytes), "test.parquet");
  ParquetColumn reader(file, column);
  ParquetValues values;
  std::optional<std::string_view> value;
  while (reader.next(value))
    values.push_back(value ? ParquetValue(std::string(*value)) : std::nullopt);
  EXPECT_EQ(values.size(), file.n_rows);
  return values;
}

ParquetValues some_values(bool nulls) {
  ParquetValues values;
  for (int i = 0; i < 20; i++)
    values.push_back(
        nulls && i % 5 >= 3
            ? ParquetValue()
            : ParquetValue("value " + std::string(static_cast<size_t>(i % 7 * 9), 'x')));
  return values;
}

template <class Use>
void for_shapes(const Use& use) {
  for (const int codec : {0, 1, 2, 6})
    for (const int bits : {0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 14, 15}) {
      const ParquetShape shape = {codec, (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0,
                                  (bits & 8) != 0};
      SCOPED_TRACE("codec " + std::to_string(codec) + ", shape " + std::to_string(bits));
      use(shape);
    }
}

std::string make(const ParquetShape& shape) {
  ParquetWriter writer(shape);
  writer.group(some_values(shape.optional));
  writer.group({ParquetValue("last")});
  return writer.finish();
}

TEST(Parquet, EveryEncodingCodecAndPage) {
  for_shapes([](const ParquetShape& shape) {
    ParquetValues expected = some_values(shape.optional);
    expected.push_back(ParquetValue("last"));
    EXPECT_EQ(read_all(make(shape)), expected);
  });
}

TEST(Parquet, PagesOfNullsAlone) {
  for (const bool version2 : {false, true})
    for (const bool dictionary : {false, true}) {
      ParquetWriter writer({.codec = 1, .dictionary = dictionary, .version2 = version2});
      writer.group(ParquetValues(7));
      EXPECT_EQ(read_all(writer.finish()), ParquetValues(7));
    }
  ParquetWriter empty({});
  EXPECT_EQ(read_all(empty.finish()), ParquetValues());
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

TEST(Parquet, WhatIsNotReadIsSaid) {
  const std::string good = make({});
  EXPECT_NE(error_of([&] { read_all(good, "id"); }).find("want text in the column id"),
            std::string::npos);
  EXPECT_NE(error_of([&] { read_all(good, "body"); }).find("no column body"), std::string::npos);
  EXPECT_NE(error_of([&] { read_all("PAR1 and something PARE"); }).find("encrypted"),
            std::string::npos);
  EXPECT_NE(error_of([&] { read_all("something else"); }).find("want a Parquet file"),
            std::string::npos);
  EXPECT_NE(
      error_of([&] {
        read_all(make({.codec = 0}).replace(4, 0, "").replace(good.size() - 8, 4, raw32(1 << 30)));
      }).find("truncated or damaged"),
      std::string::npos);
  ParquetWriter brotli({.codec = 4});
  brotli.group({ParquetValue("x")});
  EXPECT_NE(error_of([&] { read_all(brotli.finish()); }).find("got Brotli"), std::string::npos);
}

// Any byte changed, any length cut: an Error, or values; never anything else (the sanitizers of
// ./test --deep watch).
TEST(Parquet, DamageEndsInErrors) {
  for_shapes([](const ParquetShape& shape) {
    const std::string good = make(shape);
    const size_t step = 1 + good.size() / 200;
    size_t errors = 0;
    const auto try_read = [&](const std::string& bytes) {
      if (error_of([&] { read_all(bytes); }) != "no error") errors++;
    };
    for (size_t at = 0; at < good.size(); at += step)
      for (const int flip : {0x01, 0x80, 0xff}) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ flip);
        try_read(bad);
      }
    EXPECT_GT(errors, 50u);
    errors = 0;
    for (size_t size = 0; size < good.size(); size += step) try_read(good.substr(0, size));
    EXPECT_EQ(errors, (good.size() + step - 1) / step);
  });
}

TEST(Parquet, APageThatUnpacksTooFarIsRefused) {
  const std::string good = make({.codec = 6, .optional = false});
  // The first page's header: type 0, then its unpacked size.
  std::string bad = good;
  ThriftStruct huge;
  huge.number(1, 0).number(2, 2'000'000'000).number(3, 4);
  huge.inner(5, ThriftStruct().number(1, 1).number(2, 0).number(3, 3).number(4, 3));
  const std::string header = huge.end();
  bad.replace(4, header.size(), header);
  EXPECT_NE(error_of([&] { read_all(bad); }).find("is refused"), std::string::npos);
}

TEST(Parquet, RowsOfACorpus) {
  const testing::TemporaryFolder folder;
  std::ofstream(folder / "a.parquet", std::ios::binary) << make({});
  std::vector<std::string> texts;
  CorpusOptions options;
  const auto read = [&] {
    texts.clear();
    for_documents(list_corpus({folder / "a.parquet"}, options), options,
                  [&](std::string_view text) { texts.emplace_back(text); }, {});
  };
  read();
  EXPECT_EQ(texts.size(), 13u);
  options.filters = {RowFilter::parse("text=last")};
  read();
  EXPECT_EQ(texts, std::vector<std::string>{"last"});
  options.fields = {"body"};
  EXPECT_NE(error_of(read).find("want a column body, got id, text"), std::string::npos);
}

TEST(Parquet, ARealFileAgreesWithItsJsonLines) {
  TINYLLAMA_NEEDS_ASSET("assets/instruct/guanaco-llama2-1k/train.parquet");
  const auto read = [](const std::string& name) {
    std::vector<std::string> texts;
    const std::string path = testing::asset("assets/instruct/guanaco-llama2-1k/" + name);
    for_documents(
        list_corpus({path}, {}), {}, [&](std::string_view text) { texts.emplace_back(text); },
        [](const std::string& row, const std::string& why) {
          ADD_FAILURE() << row << ": " << why;
        });
    return texts;
  };
  const auto texts = read("train.parquet");
  EXPECT_EQ(texts.size(), 1000u);
  EXPECT_EQ(texts, read("train.jsonl"));
}

}  // namespace
}  // namespace tinyllama
