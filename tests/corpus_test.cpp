// Documents out of every format: what is a row, what is a document, what is refused, and that where
// the bytes happen to be cut makes no difference.
#include "data/corpus.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "data/splitter.h"
#include "support/assets.h"

namespace tinyllama {
namespace {

using testing::TemporaryFolder;
using Texts = std::vector<std::string>;

void put(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
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

std::string gzip(const std::string& text) {
  z_stream stream = {};
  ::deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(text.size() + 100, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(::deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

std::string zstd(const std::string& text) {
  std::string out(::ZSTD_compressBound(text.size()), '\0');
  out.resize(::ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

// The documents, then "! line: why" for each malformed row.
Texts documents(const std::vector<std::string>& inputs, const CorpusOptions& options = {}) {
  Texts found, bad;
  for_documents(
      list_corpus(inputs, options), options,
      [&](std::string_view text) { found.emplace_back(text); },
      [&](const std::string& row, const std::string& why) {
        bad.push_back("! " + row.substr(row.rfind(':') + 1) + ": " + why);
      });
  found.insert(found.end(), bad.begin(), bad.end());
  return found;
}

Texts documents_of(const std::string& name, const std::string& bytes,
                   const CorpusOptions& options = {}) {
  const TemporaryFolder folder;
  put(folder / name, bytes);
  return documents({folder / name}, options);
}

TEST(Corpus, ATextFileIsADocumentOrManyBetweenLines) {
  EXPECT_EQ(documents_of("a.txt", "one\ntwo\n"), (Texts{"one\ntwo\n"}));
  CorpusOptions options;
  options.separator = "<|end|>";
  EXPECT_EQ(
      documents_of("a.txt", "<|end|>\none\n\ntwo\n<|end|> \r\nb <|end|>\n<|end|>\n\n<|end|>\nc",
                   options),
      (Texts{"one\n\ntwo", "b <|end|>", "c"}));
  EXPECT_EQ(documents_of("a.txt", "", options), Texts{});
  EXPECT_EQ(documents_of("a.txt", " \n"), Texts{});
  EXPECT_EQ(documents_of("a.txt", "\xEF\xBB\xBFone"), (Texts{"one"}));
  options.filters = {RowFilter::parse("a=b")};
  EXPECT_NE(error_of([&] { documents_of("a.txt", "x", options); }).find("no fields to filter"),
            std::string::npos);
}

TEST(Corpus, JsonLines) {
  EXPECT_EQ(documents_of("a.jsonl",
                         "{\"text\":\"one\\n\\u00e4\"}\r\n\n{\"content\":\"two\"}\n"
                         "{\"text\":\" \"}\n{\"text\":null}\n{\"text\":\"three\"}"),
            (Texts{"one\n\xC3\xA4", "two", "three"}));
  const Texts bad =
      documents_of("a.jsonl",
                   "{\"text\":\"a\"}\n{\"text\":\n[1]\n{\"text\":5}\n{\"other\":\"\"}\n"
                   "{\"text\":\"\xFF\"}\n{\"text\":\"b\"} x\n{\"text\":\"c\"}\n");
  ASSERT_EQ(bad.size(), 8u);
  EXPECT_EQ(bad[0], "a");
  EXPECT_EQ(bad[1], "c");
  EXPECT_TRUE(bad[2].starts_with("! 2: not JSON")) << bad[2];
  EXPECT_EQ(bad[3], "! 3: want a JSON object");
  EXPECT_EQ(bad[4], "! 4: want text in the field text");
  EXPECT_EQ(bad[5], "! 5: want a field text or content");
  EXPECT_TRUE(bad[6].starts_with("! 6: not JSON")) << bad[6];
  EXPECT_TRUE(bad[7].starts_with("! 7: not JSON")) << bad[7];
  EXPECT_EQ(documents_of("a.jsonl", "{\"text\":\"\\ud800x\"}").front().substr(0, 4), "! 1:");
}

TEST(Corpus, FieldsAndFiltersLeadIntoObjects) {
  const std::string rows =
      "{\"text\":\"a\",\"meta\":{\"set\":\"Github\",\"n\":1}}\n"
      "{\"text\":\"b\",\"meta\":{\"set\":\"Web\",\"n\":2.5}}\n"
      "{\"text\":\"c\",\"meta.set\":\"Web\",\"meta\":null}\n{\"text\":\"d\"}\n";
  const auto with = [&](const std::vector<std::string>& filters, const Texts& fields) {
    CorpusOptions options;
    options.fields = fields;
    for (const std::string& filter : filters) options.filters.push_back(RowFilter::parse(filter));
    return documents_of("a.jsonl", rows, options);
  };
  EXPECT_EQ(with({"meta.set!=Github"}, {"text"}), (Texts{"b", "c", "d"}));
  EXPECT_EQ(with({"meta.set=Web"}, {"text"}), (Texts{"b", "c"}));
  EXPECT_EQ(with({"meta.set=Web", "meta.n!=2.5"}, {"text"}), (Texts{"c"}));
  EXPECT_EQ(with({"meta.n=1"}, {"text"}), (Texts{"a"}));
  EXPECT_EQ(with({"meta.n=1"}, {"meta.set"}), (Texts{"Github"}));
  for (const char* bad : {"abc", "=x", "!=x"})
    EXPECT_NE(error_of([&] { RowFilter::parse(bad); }).find("want FIELD=VALUE"), std::string::npos);
  EXPECT_EQ(RowFilter::parse("a=b=c").value, "b=c");
}

TEST(Corpus, JsonArraysAndValuesBehindEachOther) {
  EXPECT_EQ(documents_of(
                "a.json",
                " [ {\"text\":\"a]\\\"}\",\"x\":[{},[]]} ,\n\n{\"text\":\"b\"}, 5, \"text\" ]\n"),
            (Texts{"a]\"}", "b", "! 3: want a JSON object", "! 3: want a JSON object"}));
  EXPECT_EQ(documents_of("a.json", "{\"text\":\n\"a\"}\n{\"text\":\"b\"}"), (Texts{"a", "b"}));
  EXPECT_EQ(documents_of("a.json", "[]"), Texts{});
  EXPECT_EQ(documents_of("a.json", ""), Texts{});
  EXPECT_EQ(documents_of("a.json", "[{\"text\":\"a\"}\n"),
            (Texts{"a", "! 1: the array is not closed: the file is truncated"}));
  EXPECT_EQ(documents_of("a.json", "[{\"text\":\"a\"}]\n x"),
            (Texts{"a", "! 2: something follows the end of the array"}));
  EXPECT_EQ(documents_of("a.json", "[{\"text\":\"a\"} {\"text\":\"b\"}]"),
            (Texts{"a", "! 1: want a comma between the elements of the array"}));
  EXPECT_EQ(documents_of("a.json", "[,]"), (Texts{"! 1: want a value here"}));
  EXPECT_EQ(documents_of("a.json", "[{\"text\":\"a\"},{\"te").front(), "a");
}

TEST(Corpus, CsvByRfc4180) {
  EXPECT_EQ(documents_of("a.csv",
                         "id,text\r\n1,plain\r\n2,\"two\nlines, a \"\"quote\"\"\"\r\n\r\n3,\n4,d"),
            (Texts{"plain", "two\nlines, a \"quote\"", "d"}));
  EXPECT_EQ(documents_of("a.csv", "id,text\n1\n2,b\"c\n3,\"d\"e\n\"4\n\",f,g\n5,h"),
            (Texts{"h", "! 2: want 2 fields, got 1", "! 3: a quote stands inside an unquoted field",
                   "! 4: something follows a closing quote", "! 5: want 2 fields, got 3"}));
  EXPECT_EQ(documents_of("a.csv", "text\na\n\"b\nc\n"),
            (Texts{"a", "! 3: a quoted field that starts in this record is not closed"}));
  CorpusOptions options;
  options.filters = {RowFilter::parse("lang=en")};
  EXPECT_EQ(documents_of("a.csv", "lang,text\nen,a\nde,b\n", options), (Texts{"a"}));
  EXPECT_NE(error_of([&] {
              documents_of("a.csv", "id,body\n1,a\n");
            }).find("want a column text or content, got id, body"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              documents_of("a.csv", "id,text\n1,a\n", options);
            }).find("want a column lang for the filter"),
            std::string::npos);
}

TEST(Corpus, CompressedByWhateverName) {
  std::string lines, expected;
  Texts texts;
  for (int i = 0; i < 20000; i++) {
    texts.push_back("document " + std::to_string(i * i));
    lines += "{\"text\":\"" + texts.back() + "\"}\n";
  }
  EXPECT_EQ(documents_of("a.jsonl", lines), texts);
  EXPECT_EQ(documents_of("a.jsonl.gz", gzip(lines)), texts);
  EXPECT_EQ(documents_of("a.jsonl.zst", zstd(lines)), texts);
  EXPECT_EQ(documents_of("a.jsonl", zstd(lines)), texts);
  EXPECT_EQ(documents_of("a.jsonl.gz", lines), texts);
  const size_t half = lines.find('\n', lines.size() / 2) + 1;
  const std::string first = lines.substr(0, half), second = lines.substr(half);
  EXPECT_EQ(documents_of("a.jsonl.gz", gzip(first) + gzip(second)), texts);
  EXPECT_EQ(documents_of("a.jsonl.zst", zstd(first) + zstd(second)), texts);
  using Named = std::pair<std::string, std::string>;
  for (const Named& file : {Named{"a.jsonl.gz", gzip(lines)}, Named{"a.jsonl.zst", zstd(lines)}}) {
    const std::string &name = file.first, &bytes = file.second;
    for (const size_t size : {size_t{5}, bytes.size() / 2, bytes.size() - 1})
      EXPECT_NE(error_of([&] { documents_of(name, bytes.substr(0, size)); }).find("truncated"),
                std::string::npos)
          << name << " " << size;
    std::string damaged = bytes;
    for (size_t at = bytes.size() / 2; at < bytes.size() / 2 + 64; at++) damaged[at] = '\x55';
    EXPECT_NE(error_of([&] { documents_of(name, damaged); }).find("damaged"), std::string::npos)
        << name;
  }
}

TEST(Corpus, FoldersAreSearchedAndSorted) {
  const TemporaryFolder folder;
  put(folder / "in/b.txt", "b");
  put(folder / "in/a/z.jsonl", "{\"text\":\"z\"}");
  put(folder / "in/c.bin", "not for us");
  put(folder / "in/.hidden/x.txt", "x");
  EXPECT_EQ(documents({folder / "in"}), (Texts{"z", "b"}));
  EXPECT_EQ(documents({folder / "in/b.txt", folder / "in/a"}), (Texts{"b", "z"}));
  EXPECT_NE(error_of([&] { documents({folder / "in/c.bin"}); }).find("--format"),
            std::string::npos);
  EXPECT_NE(error_of([&] { documents({folder / "none.txt"}); }).find("none.txt"),
            std::string::npos);
  std::filesystem::create_directory(folder / "empty");
  EXPECT_NE(error_of([&] { documents({folder / "empty"}); }).find("got none"), std::string::npos);
  CorpusOptions options;
  options.format = CorpusFormat::text;
  EXPECT_EQ(documents({folder / "in/c.bin"}, options), (Texts{"not for us"}));
}

TEST(Corpus, APipeIsReadToItsEnd) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ASSERT_EQ(::write(ends[1], "{\"text\":\"a\"}\n{\"text\":\"b\"}", 25), 25);
  ::close(ends[1]);
  CorpusOptions options;
  options.standard_input = ends[0];
  options.format = CorpusFormat::jsonl;
  EXPECT_EQ(documents({"-"}, options), (Texts{"a", "b"}));
  ::close(ends[0]);
}

// Every splitter finds the same rows whether the bytes come at once or one by one.
TEST(Corpus, WhereTheBytesAreCutMakesNoDifference) {
  const std::string input =
      "[{\"a\":\"]\\\\\\\"\"},\n{\"b\":[1,\"x,y\"]} , 12,3]\r\n\"q\"\"\n\",z\n<|e|>\nrest\n<|e|>";
  const auto rows = [&](Splitter& splitter, size_t step) {
    Texts found;
    size_t from = 0;
    for (size_t have = std::min(step, input.size());; have = std::min(have + step, input.size())) {
      const bool last = have == input.size();
      RowPiece piece;
      while (splitter.find(std::string_view(input).substr(0, have), from, last, piece)) {
        found.push_back(piece.fault != nullptr
                            ? piece.fault
                            : input.substr(piece.begin, piece.end - piece.begin));
        if (piece.fault != nullptr) return found;
        from = piece.next;
      }
      if (last) return found;
    }
  };
  const auto make = {split_nothing, split_lines, split_json, split_csv};
  for (const auto& splitter : make) {
    const Texts whole = rows(*splitter(), input.size());
    EXPECT_FALSE(whole.empty());
    for (const size_t step : {1u, 2u, 3u, 7u}) EXPECT_EQ(rows(*splitter(), step), whole);
  }
  const Texts whole = rows(*split_at_lines("<|e|>"), input.size());
  EXPECT_EQ(whole.size(), 2u);
  for (const size_t step : {1u, 2u, 3u, 7u}) EXPECT_EQ(rows(*split_at_lines("<|e|>"), step), whole);
}

}  // namespace
}  // namespace tinyllama
