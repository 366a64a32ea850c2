// What the engine keeps of a request: its sequences, one for each parallel sample, and what they
// share. Plain data; the engine alone changes it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "infer/stop_matcher.h"
#include "model/kv_cache.h"
#include "model/rope.h"
#include "text/tokenizer.h"

namespace tinyllama {

// One sample: the tokens so far, and how many of them the model has seen. A step brings `computed`
// closer to the number of tokens; whether that is a prompt or an answer makes no difference.
struct Sequence {
  int sample = 0;
  std::vector<TokenId> tokens = {};  // prompt and answer; a shift does not shorten it
  int64_t computed = 0;              // of tokens
  KvSequence kv;                     // as long as `computed`, less what shifts dropped
  std::optional<Detokenizer> detokenizer = {};
  StopMatcher stops = {};
  FinishReason finish = FinishReason::none;

  int64_t pending() const { return static_cast<int64_t>(tokens.size()) - computed; }
};

// A request that was submitted and is not closed. Before its prompt is computed it has at most one
// sequence; the others are then copied from it.
struct OpenRequest {
  RequestId id = 0;
  Request request;
  OnEvent on_event;
  RopeFrequencies rope;         // fixed at admission
  int64_t max_new = 0;          // tokens a sample may get; INT64_MAX when only a stop ends it
  int64_t prompt_blocks = 0;    // worst case of the cache: blocks that all samples share,
  int64_t sample_blocks = 0;    // and those of each one
  int64_t reserved_blocks = 0;  // of the pool, now
  std::vector<Sequence> sequences;
  bool forked = false;
  bool cancelled = false;  // to be closed at the end of the step
  bool silent = false;     // its callback threw: it hears no more
  std::string error;       // why it failed

  int64_t worst_case_blocks() const { return prompt_blocks + request.n * sample_blocks; }
  int64_t prompt_length() const { return static_cast<int64_t>(request.prompt.size()); }
};

}  // namespace tinyllama
