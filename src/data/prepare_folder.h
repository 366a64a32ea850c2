// The folder that `prepare` fills: shard-000000.tok and on; manifest.json, which tells of the
// options and sources they were made with, and their totals; and, until the end, unfinished.json
// with how far the shards reach. (The program puts the tokenizer beside them.) Each file appears
// whole, a shard before the note that counts it, so that at whatever moment the program dies, the
// next run finds a true state. With several parts each has files of its own, "-0001-of-0004" in
// their names.
#pragma once

#include <string>
#include <vector>

#include "data/prepare.h"
#include "data/shard.h"

namespace tinyllama {

class PrepareFolder {
 public:
  // Makes the folder, or finds what an earlier run left and checks that it was made with the same
  // options and sources. Throws Error when not, or when the folder holds shards of something else.
  PrepareFolder(const PrepareOptions& options, const ShardVocab& vocab,
                const std::vector<CorpusFile>& files);

  bool complete() const { return complete_; }
  const PreparePoint& point() const { return point_; }  // where to go on
  // Writes a shard that reaches to `reached`, whose shard count is this folder's to fill in.
  void write(ShardWriter& shard, PreparePoint reached);
  // Nothing is left to do.
  void finish(const PrepareCounts& counts);
  // Forgets that the work began, for there was nothing to work on.
  void abandon();

 private:
  std::string file(const std::string& stem, const std::string& suffix) const;
  void refuse_strangers() const;
  void resume();
  void begin();
  void remove_own(const std::string& prefix, const std::string& suffix) const;

  std::string path_, series_;  // series: "" or "-0001-of-0004"
  std::string plan_;           // JSON: options and sources
  bool resumable_ = true, complete_ = false;
  PreparePoint point_;
};

}  // namespace tinyllama
