// The engine: turns requests into token streams over one model and one cache. It is single-threaded
// and synchronous: step() does one forward pass over whatever is pending (prefill chunks and
// decodes share it); callers own the loop. What a request gets never depends on what else is in
// flight, nor on what came before: the cache of the last sequence is kept for a prompt that goes on
// from it (the next turn of a chat), which saves time and changes no bit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "infer/sampler.h"
#include "model/llama.h"
#include "text/tokenizer.h"

namespace tinyllama {

enum class WhenFull { stop, shift };  // at the context's end: finish, or drop the oldest tokens

struct Request {
  std::vector<TokenId> prompt;  // used as given
  int64_t max_tokens = -1;      // -1: until the context is full (with WhenFull::shift: no end)
  int n = 1;                    // parallel samples; they share the prompt's cache
  SamplerParams sampling;
  std::vector<std::string> stop;     // the text ends before the first of these; UTF-8, not empty
  std::vector<TokenId> stop_tokens;  // the answer ends before any of these
  int n_logprobs = -1;               // -1: none; k: chosen token plus the k most likely
  WhenFull when_full = WhenFull::stop;
  int64_t keep = 0;  // first prompt tokens, which a shift keeps (the system prompt)
};

enum class FinishReason { none, stop, length, cancelled };

// One event of a sample's stream. Text is complete UTF-8 and never shows part of a stop string.
struct StreamEvent {
  int sample = 0;
  std::optional<Sampled> token = {};         // absent in the closing event
  std::string text = {};                     // that became certain with this token
  FinishReason finish = FinishReason::none;  // of the closing event, a sample's last
  std::string error = {};  // closing event of a request that failed (`cancelled`): why
};
// May call submit() and cancel(), not step(). When it throws, its request is cancelled without
// further events, and step() throws the same once the other sequences are served.
using OnEvent = std::function<void(const StreamEvent&)>;

struct EngineOptions {
  int64_t context = 0;  // positions a sequence may have; 0: the model's
  int64_t cache_positions =
      0;  // in the whole pool; 0: one context (times n where a request needs it)
  int64_t rows_per_step = 512;  // token budget of a step: the prefill chunk
  std::optional<DType> kv_type;
};

struct EngineStats {                                           // since construction
  int64_t prompt_tokens = 0, generated_tokens = 0, steps = 0;  // tokens that were computed
  int64_t reused_tokens = 0;  // of prompts that began as the last sequence did: not computed again
  double prompt_seconds = 0,
         generate_seconds = 0;  // steps that had prompt rows; steps that had none
};

using RequestId = int64_t;

class Engine {
 public:
  // `tokenizer` may be null: then events carry no text and stop strings are refused.
  Engine(const Llama& model, const Tokenizer* tokenizer, const EngineOptions& options = {});
  ~Engine();

  // Validates and queues; requests start in the order they came, each when the cache has room for
  // the most it may need. Throws Error when the prompt is empty, has ids outside the vocabulary,
  // exceeds the context, or the parameters are out of range; the engine is unchanged then.
  RequestId submit(Request request, OnEvent on_event);
  // Frees what the request holds and closes its samples with `cancelled`, before this returns or,
  // from within an event, before step() does. No-op when there is no such request.
  void cancel(RequestId id);
  bool busy() const;
  // One forward pass and its sampling. No-op when not busy. Throws what a callback threw, or the
  // Error of a request that failed (its samples are closed with the reason); either leaves the
  // other requests as they should be. When the forward pass itself throws, nothing has changed.
  void step();
  const EngineStats& stats() const;
  int64_t context() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct Completion {
  std::vector<TokenId> tokens;
  std::vector<Sampled> sampled;  // per token, when log-probabilities were asked for
  std::string text;
  FinishReason finish = FinishReason::none;
};
// Runs one request to its end; one Completion per sample. Throws what step() throws, after
// cancelling the request.
std::vector<Completion> generate(Engine& engine, const Request& request);

// Sum of -log p over the targets and their count, with logits as forward() computes them. `tokens`
// is scored in windows of `window` positions (0: the model's context), each starting with `bos`
// when it is a token; the first target of each window is its second token. Throws Error when there
// is no target, or an id is outside the vocabulary.
struct PerplexityResult {
  double negative_log_likelihood = 0;  // nats
  int64_t targets = 0;
  // Against the other cache, where one was asked for: divergences KL(other || this) in nats, and
  // targets for which both find the same token the likeliest.
  double kl_sum = 0, kl_max = 0;
  int64_t same_top = 0;
  double perplexity() const;
};
struct PerplexityCaches {
  DType kv_type;                 // of keys and values
  std::optional<DType> against;  // also run with this type, and compare
};
PerplexityResult perplexity(const Llama& model, std::span<const TokenId> tokens, int64_t window,
                            TokenId bos, const PerplexityCaches& caches,
                            const std::function<void(const PerplexityResult&)>& progress = nullptr);

}  // namespace tinyllama
