// Perplexity: windows of text through the forward pass, a bounded slice of logits at a time. Bits
// do not depend on the slice, so its size is a matter of memory alone.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "infer/engine.h"
#include "infer/stable_math.h"

namespace tinyllama {
namespace {

constexpr int64_t kSlice = 128;  // rows of one pass: 16 MB of logits at 32,000 tokens

// Runs one window after another with the same cache and buffers, a slice of rows at a time.
class WindowRunner {
 public:
  WindowRunner(const Llama& model, int64_t window, DType kv_type)
      : model_(model),
        rope_(rope_frequencies(model.config(), window)),
        cache_(model.backend(), model.config(), kv_type, KvCache::blocks_for(window)),
        sequence_(cache_),
        activations_(model.backend(), model.config(), std::min(kSlice, window),
                     std::min(kSlice, window)),
        logits_(static_cast<size_t>(model.config().vocab_size)) {}

  // The next rows of `window`, from its start when `first` is 0; at most kSlice.
  void run_slice(std::span<const TokenId> window, int64_t first, int64_t n) {
    if (first == 0) sequence_.clear();
    run(window.subspan(static_cast<size_t>(first), static_cast<size_t>(n)));
  }

  // Logits after row `row` of the last slice; valid until the next call.
  std::span<const float> logits(int64_t row) {
    const Tensor from = activations_.logits(static_cast<int64_t>(batch_.tokens.size()));
    model_.backend().copy_to_host(from.row(row), reinterpret_cast<std::byte*>(logits_.data()),
                                  logits_.size() * sizeof(float));
    return logits_;
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

  const Llama& model_;
  RopeFrequencies rope_;
  KvCache cache_;
  KvSequence sequence_;
  Activations activations_;
  Batch batch_;
  std::vector<float> logits_;  // (vocab)
};

// -log p(target) in nats.
double surprise(std::span<const float> logits, size_t target) {
  const double nats = log_sum_exp(logits) - static_cast<double>(logits[target]);
  if (!std::isfinite(nats))
    fail(fmt::format(
        "[perplexity] -log p of token {}: want a finite number, got {}; the model is damaged",
        target, nats));
  return nats;
}

// Adds how far `logits` lie from `reference`.
void add_divergence(std::span<const float> reference, std::span<const float> logits,
                    PerplexityResult& result) {
  const double p_sum = log_sum_exp(reference), q_sum = log_sum_exp(logits);
  double kl = 0;
  for (size_t i = 0; i < logits.size(); i++) {
    const double p = static_cast<double>(reference[i]) - p_sum;
    const double q = static_cast<double>(logits[i]) - q_sum;
    kl += std::exp(p) * (p - q);
  }
  result.kl_sum += kl;
  result.kl_max = std::max(result.kl_max, kl);
  const auto top = [](std::span<const float> x) {
    return std::max_element(x.begin(), x.end()) - x.begin();
  };
  result.same_top += top(reference) == top(logits) ? 1 : 0;
}

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
                            TokenId bos, const PerplexityCaches& caches,
                            const std::function<void(const PerplexityResult&)>& progress) {
  if (window == 0) window = model.config().context;
  check(tokens, window, bos, model.config().vocab_size);
  const size_t n_bos = bos == kNoToken ? 0 : 1, n_text = static_cast<size_t>(window) - n_bos;
  window = std::min(window, static_cast<int64_t>(tokens.size() + n_bos));
  WindowRunner runner(model, window, caches.kv_type);
  std::optional<WindowRunner> reference;
  if (caches.against) reference.emplace(model, window, *caches.against);
  PerplexityResult result;
  std::vector<TokenId> ids;
  for (size_t at = 0; at + (1 - n_bos) < tokens.size(); at += n_text) {
    const auto text = tokens.subspan(at, std::min(n_text, tokens.size() - at));
    ids.assign(n_bos, bos);
    ids.insert(ids.end(), text.begin(), text.end());
    const auto inputs = static_cast<int64_t>(ids.size()) - 1;  // the last is a target only
    for (int64_t first = 0; first < inputs; first += kSlice) {
      const int64_t n = std::min(kSlice, inputs - first);
      runner.run_slice(ids, first, n);
      if (reference) reference->run_slice(ids, first, n);
      for (int64_t row = 0; row < n; row++) {
        const std::span<const float> logits = runner.logits(row);
        const auto target = static_cast<size_t>(ids[static_cast<size_t>(first + row + 1)]);
        result.negative_log_likelihood += surprise(logits, target);
        if (reference) add_divergence(reference->logits(row), logits, result);
      }
      result.targets += n;
    }
    if (progress) progress(result);
  }
  return result;
}

}  // namespace tinyllama
