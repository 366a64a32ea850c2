// From a corpus to packed token shards: reads on one thread, parses and tokenizes on all of a pool,
// appends in the corpus's order, so that the shards do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "data/corpus.h"
#include "text/tokenizer.h"

namespace tinyllama {

struct PrepareOptions {
  std::vector<std::string> inputs;
  std::string out;  // a folder; made where it does not exist
  CorpusOptions corpus;
  bool bos = false;           // begin each document with the beginning-of-sequence token
  bool skip_bad_rows = true;  // else the first malformed row ends the work
  uint64_t shard_tokens = uint64_t{1} << 26;  // a shard ends with the document that reaches this
  int part = 1, parts = 1;  // of several machines' share, this is one; counted from 1
};

struct PrepareCounts {
  uint64_t documents = 0, tokens = 0, text_bytes = 0;
  uint64_t empty = 0, filtered = 0, malformed = 0;  // rows that became no document
};

// Where the corpus has been read to, at the end of a shard.
struct PreparePoint {
  uint64_t shards = 0;           // written
  uint64_t source = 0, row = 0;  // of the first row behind them: its file, and its number in there
  PrepareCounts counts;          // of all before
};

struct PrepareResult {
  PrepareCounts counts;
  uint64_t shards = 0, files = 0;
  PrepareCounts before;               // what of it an earlier run had done
  bool was_complete = false;          // nothing was left to do
  std::vector<std::string> bad_rows;  // the first of this run's, with reasons
};

// Called on the caller's thread now and then: bytes of the inputs read of all there are (0 where
// nobody knows), and what has become of them. May throw to stop.
using PrepareProgress =
    std::function<void(uint64_t done, uint64_t total, const PrepareCounts& counts)>;

// The share of the files that a part works on: largest first to the part that has least, in the
// corpus's order. Throws Error when a part would have none.
std::vector<CorpusFile> files_of_part(const std::vector<CorpusFile>& files, int part, int parts);

// Fills options.out, see prepare_folder.h for what stands in it. A run that was stopped, however,
// goes on behind its last shard when started again with the same options. Throws Error when options
// or inputs differ from those that began the folder, when no document is found, and for the first
// malformed row unless they are to be skipped.
PrepareResult prepare_tokens(const Tokenizer& tokenizer, const PrepareOptions& options,
                             ThreadPool& pool, const PrepareProgress& progress);

}  // namespace tinyllama
