// The batches of a training run. One counter, the number of blocks that all ranks have drawn so
// far, is the whole state: what a step reads follows from it, so that a resumed run neither repeats
// nor skips, and the tokens of a step do not depend on how many ranks share it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "data/mixture.h"

namespace tinyllama {

// A token that predicts nothing carries this as its target.
inline constexpr TokenId kNoTarget = -100;

struct LoaderOptions {
  int64_t blocks_per_step = 1;  // of all ranks together, a multiple of micro_batch * ranks
  int64_t micro_batch = 1;      // blocks that a rank computes at a time
  int rank = 0, ranks = 1;
  // Documents in a block see only themselves, and their last token has no target; false: a block is
  // one text. Where a shard does not know its documents, a block is one text too.
  bool mask_documents = true;
};

// Several blocks, one behind the other; a source's last block may be shorter than the rest.
struct MicroBatch {
  std::vector<TokenId> tokens;     // (rows), at most micro_batch * context
  std::vector<TokenId> targets;    // (rows) the token after each, or kNoTarget
  std::vector<int64_t> documents;  // lengths of the runs of rows that see only themselves
  std::vector<uint64_t> draws;     // (blocks) which draws of the mixture these are
};

class Loader {
 public:
  Loader(std::shared_ptr<const Mixture> mixture, const LoaderOptions& options);

  // The counter of the step that read() reads.
  uint64_t position() const { return position_; }
  void seek(uint64_t position) { position_ = position; }
  void next_step() { position_ += static_cast<uint64_t>(options_.blocks_per_step); }

  // Micro-batches of this rank in a step: gradient accumulation.
  int64_t micro_batches() const;
  // Fills `to` with micro-batch i of this rank.
  void read(int64_t i, MicroBatch& to) const;
  // The draws that it consists of: micro_batch consecutive numbers, beginning with this one.
  uint64_t first_draw(int64_t i) const;
  // Targets (other than kNoTarget) of the whole step, of all ranks: what a mean loss divides by. It
  // reads the documents' index, not the tokens.
  uint64_t step_targets() const;

  const Mixture& mixture() const { return *mixture_; }

 private:
  std::vector<int64_t> document_lengths(const Mixture::Draw& draw, Mixture::Range range) const;

  std::shared_ptr<const Mixture> mixture_;
  LoaderOptions options_;
  uint64_t position_ = 0;
};

// What a run reads of one source.
struct SourceUse {
  uint64_t blocks = 0;  // drawn, repeats counted
  uint64_t tokens = 0;  // in them
  double epochs = 0;    // blocks drawn, over those that the source has
};

// Walks a whole run as its ranks would and proves that every draw is made by exactly one rank, and
// each source's blocks are drawn exactly once each epoch, before any is drawn again. Throws Error
// naming the draw where that is not so. Memory: a bit for each block. `progress` gets steps.
std::vector<SourceUse> prove_plan(const std::shared_ptr<const Mixture>& mixture,
                                  LoaderOptions options, int64_t steps,
                                  const Progress& progress = nullptr);

}  // namespace tinyllama
