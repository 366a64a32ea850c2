// Tokenizing a corpus in parallel, see prepare.h.
#include "data/prepare.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>
#include <numeric>

#include "base/error.h"
#include "data/prepare_folder.h"
#include "data/shard.h"

namespace tinyllama {
namespace {

constexpr size_t kBatchesPerThread = 4;
constexpr size_t kBadRowsShown = 5;

struct RowResult {
  RowKind kind = RowKind::document;
  size_t n_tokens = 0, text_bytes = 0;
  std::string why = {};
};

// A batch on its way: read, then tokenized.
struct Work {
  size_t source = 0;
  RowBatch batch;
  std::vector<TokenId> ids;     // of all documents, one behind the other
  std::vector<RowResult> rows;  // a result for each row of the batch
};

// Reads the corpus from a point on, some batches at a time.
class Reader {
 public:
  Reader(const std::vector<CorpusFile>& files, const CorpusOptions& options,
         const PreparePoint& from)
      : files_(files), options_(options), source_(from.source), skip_(from.row) {}

  // Up to `n` batches; none at the end.
  std::vector<Work> read(size_t n) {
    std::vector<Work> window;
    while (window.size() < n && source_ < files_.size()) {
      if (rows_ == nullptr) rows_ = open_rows(files_[source_], options_);
      Work work;
      work.source = source_;
      if (!rows_->next(work.batch)) {
        rows_ = nullptr;
        source_++;
        skip_ = 0;
      } else if (skip_done_rows(work.batch)) {
        window.push_back(std::move(work));
      }
    }
    return window;
  }

 private:
  // Drops the rows that an earlier run has done; false when nothing is left.
  bool skip_done_rows(RowBatch& batch) const {
    if (batch.first_row >= skip_) return true;
    const uint64_t done = std::min<uint64_t>(skip_ - batch.first_row, batch.rows.size());
    batch.rows.erase(batch.rows.begin(), batch.rows.begin() + static_cast<ptrdiff_t>(done));
    batch.first_row += done;
    return !batch.rows.empty();
  }

  const std::vector<CorpusFile>& files_;
  const CorpusOptions& options_;
  std::unique_ptr<RowSource> rows_;
  size_t source_;
  uint64_t skip_;
};

// What a thread keeps between batches.
struct Worker {
  RowParser parser;
  EncodeScratch scratch = {};
};

void tokenize(const Tokenizer& tokenizer, bool bos, Worker& worker, Work& work) {
  work.rows.reserve(work.batch.rows.size());
  for (const Row& row : work.batch.rows) {
    RowParser::Parsed parsed = worker.parser.parse(work.batch, row);
    RowResult& result = work.rows.emplace_back();
    result.kind = parsed.kind;
    result.why = std::move(parsed.why);
    if (parsed.kind != RowKind::document) continue;
    const size_t before = work.ids.size();
    if (bos) work.ids.push_back(tokenizer.vocab().bos);
    tokenizer.encode(parsed.text, {}, worker.scratch, work.ids);
    work.ids.push_back(tokenizer.vocab().eos);
    result.n_tokens = work.ids.size() - before;
    result.text_bytes = parsed.text.size();
  }
}

// Takes tokenized batches in the corpus's order and makes shards of them.
class Appender {
 public:
  Appender(const PrepareOptions& options, const ShardVocab& vocab,
           const std::vector<CorpusFile>& files, PrepareFolder& folder)
      : options_(options), files_(files), folder_(folder), writer_(vocab), at_(folder.point()) {}

  void append(const Work& work) {
    at_.source = work.source;
    at_.row = work.batch.first_row;
    std::span<const TokenId> ids = work.ids;
    for (size_t i = 0; i < work.rows.size(); i++) {
      const RowResult& result = work.rows[i];
      at_.row++;
      switch (result.kind) {
        case RowKind::empty:
          at_.counts.empty++;
          break;
        case RowKind::filtered:
          at_.counts.filtered++;
          break;
        case RowKind::malformed:
          bad_row(row_name(files_[work.source], work.batch.rows[i].line) + ": " + result.why);
          break;
        case RowKind::document:
          add(ids.first(result.n_tokens), result.text_bytes);
          ids = ids.subspan(result.n_tokens);
      }
    }
  }

  // The last shard, as long as it happens to be.
  PrepareCounts finish() {
    if (writer_.n_documents() > 0) folder_.write(writer_, at_);
    return at_.counts;
  }

  const PrepareCounts& counts() const { return at_.counts; }
  std::vector<std::string> take_bad_rows() { return std::move(bad_rows_); }

 private:
  void add(std::span<const TokenId> document, size_t text_bytes) {
    writer_.add(document);
    at_.counts.documents++;
    at_.counts.tokens += document.size();
    at_.counts.text_bytes += text_bytes;
    if (writer_.n_tokens() >= options_.shard_tokens) folder_.write(writer_, at_);
  }

  void bad_row(std::string message) {
    if (!options_.skip_bad_rows)
      fail(
          fmt::format("[prepare] {}: nothing behind it was read (--bad-rows skip counts such rows "
                      "and goes on)",
                      message));
    at_.counts.malformed++;
    if (bad_rows_.size() < kBadRowsShown) bad_rows_.push_back(std::move(message));
  }

  const PrepareOptions& options_;
  const std::vector<CorpusFile>& files_;
  PrepareFolder& folder_;
  ShardWriter writer_;
  PreparePoint at_;
  std::vector<std::string> bad_rows_;
};

void check_tokenizer(const Vocab& vocab, bool bos) {
  if (vocab.eos == kNoToken)
    fail(
        "[prepare] the tokenizer has no end-of-sequence token, which must end each document: use "
        "another one");
  if (bos && vocab.bos == kNoToken)
    fail("[prepare] --bos: the tokenizer has no beginning-of-sequence token");
}

}  // namespace

std::vector<CorpusFile> files_of_part(const std::vector<CorpusFile>& files, int part, int parts) {
  TL_CHECK(1 <= part && part <= parts);
  if (parts == 1) return files;
  if (files.size() < static_cast<size_t>(parts))
    fail(
        fmt::format("[prepare] part {}/{}: want at least a file for each part, got {} files: use "
                    "fewer parts, or split the files",
                    part, parts, files.size()));
  std::vector<size_t> by_size(files.size());
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(),
                   [&](size_t a, size_t b) { return files[a].bytes > files[b].bytes; });
  // Files weigh a byte more than they have, so that empty ones are spread too.
  std::vector<uint64_t> load(static_cast<size_t>(parts), 0);
  std::vector<size_t> own;
  for (const size_t file : by_size) {
    const auto least =
        static_cast<size_t>(std::min_element(load.begin(), load.end()) - load.begin());
    load[least] += files[file].bytes + 1;
    if (least + 1 == static_cast<size_t>(part)) own.push_back(file);
  }
  std::sort(own.begin(), own.end());
  std::vector<CorpusFile> chosen;
  chosen.reserve(own.size());
  for (const size_t file : own) chosen.push_back(files[file]);
  return chosen;
}

PrepareResult prepare_tokens(const Tokenizer& tokenizer, const PrepareOptions& options,
                             ThreadPool& pool, const PrepareProgress& progress) {
  check_tokenizer(tokenizer.vocab(), options.bos);
  const std::vector<CorpusFile> files =
      files_of_part(list_corpus(options.inputs, options.corpus), options.part, options.parts);
  const ShardVocab vocab = shard_vocab(tokenizer.vocab());
  PrepareFolder folder(options, vocab, files);
  PrepareResult result;
  result.files = files.size();
  result.before = folder.point().counts;
  result.was_complete = folder.complete();
  if (!result.was_complete) {
    std::vector<uint64_t> bytes_before = {0};  // of the files before each
    bool known = true;
    for (const CorpusFile& file : files) {
      bytes_before.push_back(bytes_before.back() + file.bytes);
      known &= file.path != "-";
    }
    const size_t window_size = kBatchesPerThread * static_cast<size_t>(pool.size());
    std::vector<Worker> workers;
    workers.reserve(static_cast<size_t>(pool.size()));
    for (int i = 0; i < pool.size(); i++) workers.push_back({RowParser(options.corpus)});
    Reader reader(files, options.corpus, folder.point());
    Appender appender(options, vocab, files, folder);
    const auto read = [&] { return reader.read(window_size); };
    // The next batches are read while these are tokenized.
    std::vector<Work> window = read();
    while (!window.empty()) {
      std::future<std::vector<Work>> next = std::async(std::launch::async, read);
      pool.for_each(static_cast<int64_t>(window.size()), [&](int64_t item, int thread) {
        tokenize(tokenizer, options.bos, workers[static_cast<size_t>(thread)],
                 window[static_cast<size_t>(item)]);
      });
      for (const Work& work : window) appender.append(work);
      const Work& last = window.back();
      if (progress)
        progress(bytes_before[last.source] + last.batch.position, known ? bytes_before.back() : 0,
                 appender.counts());
      window = next.get();
    }
    const PrepareCounts counts = appender.finish();
    if (counts.documents == 0) {
      folder.abandon();
      fail(
          fmt::format("[prepare] no document in {} files: {} rows empty, {} filtered out, {} "
                      "malformed{}",
                      files.size(), counts.empty, counts.filtered, counts.malformed,
                      counts.malformed > 0 ? ": " + appender.take_bad_rows().front() : ""));
    }
    folder.finish(counts);
    result.bad_rows = appender.take_bad_rows();
  }
  result.counts = folder.point().counts;
  result.shards = folder.point().shards;
  return result;
}

}  // namespace tinyllama
