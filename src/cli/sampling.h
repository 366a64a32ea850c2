// The options that say how an answer is drawn and where it ends, shared by chat and generate.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/options.h"
#include "formats/checkpoint.h"
#include "infer/engine.h"

namespace tinyllama::cli {

struct SamplingOptions {
  std::optional<double> temperature, top_p, repetition_penalty;  // unset: the model's own default
  std::optional<int> top_k;
  double min_p = 0, typical_p = 1, frequency_penalty = 0, presence_penalty = 0;
  int penalty_window = -1;
  std::vector<std::string> logit_bias;  // "ID:BIAS"
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  std::string when_full = "stop";
  int64_t context = 0;

  // What a request is drawn with. An unset temperature or filter is the checkpoint's, else ours
  // (temperature 0.8, top-p 0.95); an unset seed is drawn from the system.
  SamplerParams params(const Checkpoint& checkpoint) const;
  WhenFull on_full() const { return when_full == "shift" ? WhenFull::shift : WhenFull::stop; }
};

void declare_sampling(Options& options, SamplingOptions& sampling);

}  // namespace tinyllama::cli
