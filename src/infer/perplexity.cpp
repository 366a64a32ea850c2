// Perplexity: windows of text through the forward pass, a bounded slice of logits at a time. Bits
// do not depend on the slice, so its size is a matter of memory alone.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "infer/engine.h"
#include "infer/stable_math.h"

namespace tinyllama {
namespace {

constexpr int64_t kSlice = 128;  // rows of one pass: 16 MB of logits at 32,000 tokens

// Scores one window after another with the same cache and buffers.
class WindowScorer {
 public:
  WindowScorer(const Llama& model, int64_t window, DType kv_type)
      : model_(model),
        rope_(rope_frequencies(model.config(), window)),
        cache_(model.backend(), model.config(), kv_type, KvCache::blocks_for(window)),
        sequence_(cache_),
        activations_(model.backend(), model.config(), std::min(kSlice, window),
                     std::min(kSlice, window)),
        logits_(static_cast<size_t>(model.config().vocab_size)) {}

  // Adds the window's targets to `result`.
  void score(std::span<const TokenId> tokens, PerplexityResult& result) {
    sequence_.clear();
    const auto inputs = static_cast<int64_t>(tokens.size()) - 1;  // the last is a target only
    while (sequence_.length() < inputs) {
      const int64_t first = sequence_.length(), n = std::min(kSlice, inputs - first);
      run(tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(n)));
      for (int64_t row = 0; row < n; row++) {
        const auto target = static_cast<size_t>(tokens[static_cast<size_t>(first + row + 1)]);
        result.negative_log_likelihood += surprise(row, n, target);
      }
      result.targets += n;
    }
  }

 private:
  void run(std::span<const TokenId> tokens) {
    const auto n = static_cast<int64_t>(tokens.size());
    sequence_.reserve(n);
    batch_.tokens.assign(tokens.begin(), tokens.end());
    batch_.segments.assign(
        1, {0, n, sequence_.length(), sequence_.blocks(), rope_.inv_freq, rope_.scale});
    batch_.logit_rows.clear();
    for (int64_t row = 0; row < n; row++) batch_.logit_rows.push_back(static_cast<int32_t>(row));
    forward(model_, batch_, cache_, activations_);
    sequence_.advance(n);
  }

  // -log p(target) in nats, after row `row` of the last pass's n.
  double surprise(int64_t row, int64_t n, size_t target) {
    const Tensor from = activations_.logits(n);
    model_.backend().copy_to_host(from.row(row), reinterpret_cast<std::byte*>(logits_.data()),
                                  logits_.size() * sizeof(float));
    const double nats = log_sum_exp(logits_) - static_cast<double>(logits_[target]);
    if (!std::isfinite(nats))
      fail(
          fmt::format("[perplexity] -log p of token {}: want a finite number, got {}; the model is "
                      "damaged",
                      target, nats));
    return nats;
  }

  const Llama& model_;
  RopeFrequencies rope_;
  KvCache cache_;
  KvSequence sequence_;
  Activations activations_;
  Batch batch_;
  std::vector<float> logits_;  // (vocab)
};

void check(std::span<const TokenId> tokens, int64_t window, TokenId bos, int64_t vocab_size) {
  if (window < 2)
    fail(fmt::format("[perplexity] window: want at least 2 positions, got {}", window));
  if (bos != kNoToken && (bos < 0 || bos >= vocab_size))
    fail(fmt::format("[perplexity] bos: want a token id in [0, {}), got {}", vocab_size, bos));
  for (const TokenId token : tokens)
    if (token < 0 || token >= vocab_size)
      fail(fmt::format("[perplexity] want token ids in [0, {}), got {}", vocab_size, token));
  const size_t least = bos == kNoToken ? 2 : 1;
  if (tokens.size() < least)
    fail(fmt::format("[perplexity] want at least {} tokens, got {}", least, tokens.size()));
}

}  // namespace

double PerplexityResult::perplexity() const {
  return std::exp(negative_log_likelihood / static_cast<double>(targets));
}

PerplexityResult perplexity(const Llama& model, std::span<const TokenId> tokens, int64_t window,
                            TokenId bos, DType kv_type,
                            const std::function<void(const PerplexityResult&)>& progress) {
  if (window == 0) window = model.config().context;
  check(tokens, window, bos, model.config().vocab_size);
  const size_t n_bos = bos == kNoToken ? 0 : 1, n_text = static_cast<size_t>(window) - n_bos;
  window = std::min(window, static_cast<int64_t>(tokens.size() + n_bos));
  WindowScorer scorer(model, window, kv_type);
  PerplexityResult result;
  std::vector<TokenId> ids;
  for (size_t first = 0; first + (1 - n_bos) < tokens.size(); first += n_text) {
    const auto text = tokens.subspan(first, std::min(n_text, tokens.size() - first));
    ids.assign(n_bos, bos);
    ids.insert(ids.end(), text.begin(), text.end());
    scorer.score(ids, result);
    if (progress) progress(result);
  }
  return result;
}

}  // namespace tinyllama
