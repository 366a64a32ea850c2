// Several folders of tokens as one endless order of blocks: which source the n-th draw comes from
// and which of its blocks it is, computed from n alone. Nothing is remembered between draws, so a
// run that resumes at n goes on exactly as one that never stopped, and all ranks share one order.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/shard.h"

namespace tinyllama {

enum class Order { shuffled, sequential };

struct MixtureSource {
  std::string path;   // a folder of shards or a single shard
  double weight = 1;  // blocks of it among all, relative to the others' weights
};

class Mixture {
 public:
  // Blocks are context + 1 consecutive tokens: `context` inputs and, one further, their targets.
  // They do not overlap; the last one of a source is what is left, if at least 2 tokens are.
  // Throws Error for sources that cannot be read, are of different vocabularies, or have less than
  // 2 tokens.
  Mixture(const std::vector<MixtureSource>& sources, int64_t context, Order order, uint64_t seed);

  struct Draw {
    size_t source;
    uint64_t epoch;  // how often the source was drawn completely before
    uint64_t block;
  };
  // The n-th draw, n < 2^62. After any number of draws, source i has given its weight's share to
  // within one block a source; the blocks of a source come in a permuted order, another one each
  // epoch, or as they lie ("sequential").
  Draw draw(uint64_t n) const;

  size_t n_sources() const { return sources_.size(); }
  const TokenFolder& folder(size_t source) const { return *sources_[source].folder; }
  uint64_t n_blocks(size_t source) const { return sources_[source].n_blocks; }
  double share(size_t source) const { return sources_[source].share; }  // they add up to 1
  const ShardVocab& vocab() const { return folder(0).vocab(); }
  int64_t context() const { return context_; }

  // The tokens of a block: `first` counted from the folder's beginning, `n` in [2, context + 1].
  struct Range {
    uint64_t first, n;
  };
  Range range(size_t source, uint64_t block) const;

 private:
  struct Source {
    std::unique_ptr<TokenFolder> folder;
    uint64_t n_blocks = 0;
    double share = 0;
    uint64_t part = 0;  // of what the sources before leave, in 2^-32
  };

  std::vector<Source> sources_;
  int64_t context_;
  Order order_;
  uint64_t seed_;
};

}  // namespace tinyllama
