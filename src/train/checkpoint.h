// Checkpoints of a run: step-00000040/ is a Hugging Face folder, loadable by everything, with the
// training state beside the weights; `last` is a link to the newest. A checkpoint appears whole or
// not at all, and a damaged one is recognized by its checksums.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "formats/checkpoint.h"
#include "model/optimizer.h"
#include "model/parameters.h"

namespace tinyllama {

// What a run needs to go on as if it had never stopped, beside weights and moments.
struct RunState {
  int64_t step = 0;       // steps done
  uint64_t position = 0;  // blocks consumed, of all ranks
  uint64_t seed = 0;
  std::string isa;  // whose bits these are
  std::string precision;
  std::string plan;  // what must not change on resume, in words: data, batch, optimizer

  bool operator==(const RunState&) const = default;
};

// "step-00000040".
std::string checkpoint_name(int64_t step);

// Writes `dir`/step-N: the weights in FP32 under their Hugging Face names, config and tokenizer of
// `like`, moments, state; points `last` at it; then removes all but the `keep` newest. Throws Error
// when it cannot be written, leaving the older ones as they were.
void save_checkpoint(const std::string& dir, const RunState& state, const Checkpoint& like,
                     const Parameters& weights, Optimizer& optimizer, int64_t keep,
                     ThreadPool& pool);

// Restores the newest whole checkpoint in `dir`; nothing where there is none. What is damaged or
// incomplete is passed over with a call of `warn`.
std::optional<RunState> load_checkpoint(const std::string& dir, Parameters& weights,
                                        Optimizer& optimizer,
                                        const std::function<void(const std::string&)>& warn);

}  // namespace tinyllama
