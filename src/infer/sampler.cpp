// The sampling chain. One pass over the logits leaves the maximum of every block of the vocabulary;
// all later steps look only into blocks that can matter, so that a step costs what its result
// needs.
#include "infer/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/rng.h"
#include "infer/stable_math.h"

namespace tinyllama {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr double kGreedyBelow =
    1e-30;  // temperatures whose inverse would leave no room in a double

// The key of all tokens' noise at one place; token t's bits are splitmix64(noise ^ t).
uint64_t noise_of(const NoiseKey& key) {
  return hash_key(key.seed, key.sample, key.position);
}

uint64_t token_bits(uint64_t noise, TokenId token) {
  return splitmix64(noise ^ static_cast<uint64_t>(token));
}

// u = (top 52 bits + 1/2) / 2^52 is exact in a double and never 0 or 1, which bounds the noise to
// [-3.6, 36.8].
double gumbel_of_bits(uint64_t bits) {
  const double u = (static_cast<double>(bits >> 12) + 0.5) * 0x1.0p-52;
  return -stable_log(-stable_log(u));
}

// gumbel_of_bits() is at most (z + 1) ln 2 where z counts the leading one bits: -ln(-ln u) <=
// -ln(1 - u), and 1 - u >= 2^-(z + 1). Returns the least z with which a token of scaled logit
// `scaled` can reach the score `best`; the slack covers rounding.
int leading_ones_needed(double best, double scaled) {
  const double slack = 1e-9 + 1e-14 * (std::abs(best) + std::abs(scaled));
  const double z = (best - scaled - slack) / (kLn2High + kLn2Low) - 1.0;
  return z <= 0 ? 0 : z >= 64 ? 64 : static_cast<int>(z);
}

// A running argmax whose ties go to the lowest token id, whatever order the tokens come in.
struct Best {
  double score = -std::numeric_limits<double>::infinity();
  TokenId token = kNoToken;
  void offer(double candidate_score, TokenId candidate) {
    if (candidate_score > score || (candidate_score == score && candidate < token) ||
        token == kNoToken) {
      score = candidate_score;
      token = candidate;
    }
  }
};

[[noreturn]] void fail_range(std::string_view name, double value, std::string_view range) {
  fail(fmt::format("[sample] {}: want {}, got {}", name, range, value));
}

// Written so that NaN fails.
void check_range(std::string_view name, double value, double low, double high,
                 std::string_view range) {
  if (!(value >= low && value <= high)) fail_range(name, value, range);
}

bool filters(const SamplerParams& params, size_t vocab_size) {
  const bool top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < vocab_size;
  return top_k || params.top_p < 1 || params.min_p > 0 || params.typical_p < 1;
}

}  // namespace

double gumbel_noise(const NoiseKey& key, TokenId token) {
  return gumbel_of_bits(token_bits(noise_of(key), token));
}

void SamplerParams::validate(int64_t vocab_size) const {
  constexpr double kMost = 1e30;
  check_range("temperature", temperature, 0, kMost, "0 (greedy) or more");
  if (top_k < 0) fail_range("top_k", top_k, "0 (off) or more");
  check_range("top_p", top_p, 0, 1, "0 to 1");
  check_range("min_p", min_p, 0, 1, "0 to 1");
  check_range("typical_p", typical_p, 0, 1, "0 to 1");
  check_range("repetition_penalty", repetition_penalty, 1e-6, 1e6, "1e-6 to 1e6 (1 is off)");
  check_range("frequency_penalty", frequency_penalty, -1e6, 1e6, "-1e6 to 1e6 (0 is off)");
  check_range("presence_penalty", presence_penalty, -1e6, 1e6, "-1e6 to 1e6 (0 is off)");
  if (penalty_window < -1) fail_range("penalty_window", penalty_window, "-1 (all) or more");
  for (const auto& [token, bias] : logit_bias) {
    if (token < 0 || token >= vocab_size)
      fail(
          fmt::format("[sample] logit_bias: want token ids in [0, {}), got {}", vocab_size, token));
    if (!(bias <= std::numeric_limits<float>::max()))
      fail(fmt::format("[sample] logit_bias of token {}: want a number or -infinity, got {}", token,
                       bias));
  }
}

Sampler::Sampler(int64_t vocab_size) {
  const auto n = static_cast<size_t>(vocab_size);
  logits_.resize(n);
  block_max_.resize((n + kScanBlock - 1) / kScanBlock);
  pool_.resize(n);
  values_.reserve(n);
  weights_.reserve(n);
  counts_.resize(n);
  touched_.reserve(n);
}

Sampled Sampler::sample(std::span<const float> logits, const SamplerParams& params,
                        std::span<const TokenId> history, const NoiseKey& key, int n_logprobs) {
  const std::span<const float> processed = penalize(logits, params, history);
  scan(processed);
  Sampled sampled;
  if (params.temperature < kGreedyBelow) {
    const size_t block = static_cast<size_t>(std::find(block_max_.begin(), block_max_.end(), max_) -
                                             block_max_.begin());
    const auto at = std::find(processed.begin() + static_cast<std::ptrdiff_t>(block * kScanBlock),
                              processed.end(), max_);
    sampled.token = static_cast<TokenId>(at - processed.begin());
  } else if (!filters(params, logits.size())) {
    sampled.token = draw_all(processed, 1.0 / params.temperature, noise_of(key));
  } else {
    choose(processed, params);
    sampled.token = draw(1.0 / params.temperature, noise_of(key));
  }
  if (n_logprobs >= 0) add_logprobs(logits, n_logprobs, sampled);
  return sampled;
}

std::vector<double> Sampler::distribution(std::span<const float> logits,
                                          const SamplerParams& params,
                                          std::span<const TokenId> history) {
  const std::span<const float> processed = penalize(logits, params, history);
  scan(processed);
  std::vector<double> probabilities(logits.size(), 0.0);
  if (params.temperature < kGreedyBelow) {
    const auto at = std::find(processed.begin(), processed.end(), max_);
    probabilities[static_cast<size_t>(at - processed.begin())] = 1;
    return probabilities;
  }
  choose(processed, params);
  const double total = weigh(1.0 / params.temperature);
  for (const Candidate& c : candidates_)
    probabilities[static_cast<size_t>(c.token)] = c.weight / total;
  return probabilities;
}

// Checks the call, and returns the logits after bias and penalties: `logits` itself when nothing
// changes them.
std::span<const float> Sampler::penalize(std::span<const float> logits, const SamplerParams& params,
                                         std::span<const TokenId> history) {
  TL_CHECK(logits.size() == counts_.size());
  params.validate(static_cast<int64_t>(logits.size()));
  const bool penalties = params.repetition_penalty != 1 || params.frequency_penalty != 0 ||
                         params.presence_penalty != 0;
  if (!penalties && params.logit_bias.empty()) return logits;
  std::copy(logits.begin(), logits.end(), logits_.begin());
  for (const auto& [token, bias] : params.logit_bias) logits_[static_cast<size_t>(token)] += bias;
  if (!penalties) return logits_;

  if (params.penalty_window >= 0 && history.size() > static_cast<size_t>(params.penalty_window))
    history = history.last(static_cast<size_t>(params.penalty_window));
  constexpr double kMost = std::numeric_limits<float>::max();
  touched_.clear();
  for (const TokenId token : history) {
    TL_CHECK(token >= 0 && static_cast<size_t>(token) < counts_.size());
    if (counts_[static_cast<size_t>(token)]++ == 0) touched_.push_back(token);
  }
  for (const TokenId token : touched_) {
    const auto t = static_cast<size_t>(token);
    double logit = logits_[t];
    logit = logit < 0 ? logit * params.repetition_penalty : logit / params.repetition_penalty;
    logit -= params.frequency_penalty * counts_[t] + params.presence_penalty;
    logits_[t] = std::isfinite(logit) ? static_cast<float>(std::clamp(logit, -kMost, kMost))
                                      : static_cast<float>(logit);
    counts_[t] = 0;
  }
  return logits_;
}

// Fills block_max_ and max_. Throws when a logit is NaN or +infinity, or all are -infinity.
void Sampler::scan(std::span<const float> logits) {
  if (!block_maxima(logits, block_max_)) {
    const auto at = std::find_if(logits.begin(), logits.end(),
                                 [](float x) { return !(x <= std::numeric_limits<float>::max()); });
    fail(
        fmt::format("[sample] want finite logits, got {} for token {}; the model or its input is "
                    "damaged",
                    *at, at - logits.begin()));
  }
  max_ = *std::max_element(block_max_.begin(), block_max_.end());
  if (max_ == kMinusInfinity) fail("[sample] want a token to choose from, but all are excluded");
}

// candidates_ = the tokens with logit >= at_least (and > -infinity), in order of id.
void Sampler::collect(std::span<const float> logits, double at_least) {
  constexpr double kLowest = std::numeric_limits<float>::lowest();
  const auto floor = static_cast<float>(std::max(at_least, kLowest));
  size_t n = 0;
  for (size_t block = 0; block < block_max_.size(); block++) {
    if (block_max_[block] < floor) continue;
    const size_t end = std::min(logits.size(), (block + 1) * kScanBlock);
    for (size_t i = block * kScanBlock; i < end; i++) {  // a branch here would be a coin toss
      pool_[n].logit = logits[i];
      pool_[n].token = static_cast<TokenId>(i);
      n += logits[i] >= floor ? 1 : 0;
    }
  }
  candidates_ = std::span(pool_).first(n);
}

template <class Predicate>
void Sampler::keep_if(Predicate keep) {
  const auto end = std::remove_if(candidates_.begin(), candidates_.end(),
                                  [&](const Candidate& c) { return !keep(c); });
  candidates_ = candidates_.first(static_cast<size_t>(end - candidates_.begin()));
}

// candidates_ = the k largest and whatever ties with the last of them. The k-th largest block
// maximum bounds the k-th largest logit from below.
void Sampler::collect_top(std::span<const float> logits, int64_t k) {
  const auto nth = static_cast<std::ptrdiff_t>(k) - 1;
  const auto kth_largest = [&] {
    std::nth_element(values_.begin(), values_.begin() + nth, values_.end(), std::greater<>());
    return values_[static_cast<size_t>(nth)];
  };
  float bound = kMinusInfinity;
  if (static_cast<size_t>(k) < block_max_.size()) {
    values_.assign(block_max_.begin(), block_max_.end());
    bound = kth_largest();
  }
  collect(logits, bound);
  if (candidates_.size() <= static_cast<size_t>(k)) return;
  values_.clear();
  for (const Candidate& c : candidates_) values_.push_back(c.logit);
  const float threshold = kth_largest();
  keep_if([&](const Candidate& c) { return c.logit >= threshold; });
}

// Sets the candidates' weights and returns their sum.
double Sampler::weigh(double inverse_temperature) {
  values_.clear();
  for (const Candidate& c : candidates_) values_.push_back(c.logit);
  weights_.resize(candidates_.size());
  exp_each(values_, max_, inverse_temperature, weights_);
  double total = 0;
  for (size_t i = 0; i < candidates_.size(); i++) total += candidates_[i].weight = weights_[i];
  return total;
}

// Keeps the first candidates, in order of key, whose predecessors weigh less than `mass`: all up to
// and including the one that crosses it, at least one. Equal keys go by token id, highest first
// (Hugging Face's stable ascending sort); keep_ties also keeps what equals the last key. A
// quickselect over sums: linear, and sorted only where little is left.
void Sampler::keep_mass(double mass, bool keep_ties) {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.key < b.key || (a.key == b.key && a.token > b.token);
  };
  constexpr std::ptrdiff_t kSmall = 48;
  auto begin = candidates_.begin(), end = candidates_.end();
  double sum = 0;  // weight of everything before `begin`, all of which is kept
  mass = std::max(mass, std::numeric_limits<double>::min());
  while (end - begin > kSmall) {
    const auto middle = begin + (end - begin) / 2, last = end - 1;
    if (before(*middle, *begin)) std::swap(*middle, *begin);
    if (before(*last, *middle)) std::swap(*last, *middle);
    if (before(*middle, *begin)) std::swap(*middle, *begin);
    const Candidate pivot = *middle;
    double left = 0;
    auto split = begin;
    for (auto c = begin; c != end; ++c) {
      if (!before(*c, pivot)) continue;
      left += c->weight;
      std::swap(*c, *split++);
    }
    if (sum + left >= mass) {
      end = split;
    } else {
      sum += left;
      begin = split;
      // The pivot leads the rest: put it in its place, so that the range shrinks.
      const auto at =
          std::find_if(begin, end, [&](const Candidate& c) { return c.token == pivot.token; });
      std::swap(*at, *begin);
      if (sum + pivot.weight >= mass) {
        end = begin + 1;
      } else {
        sum += pivot.weight;
        ++begin;
      }
    }
  }
  std::sort(begin, end, before);
  auto kept = begin;
  while (kept != end && (kept == candidates_.begin() || sum < mass)) sum += (kept++)->weight;
  if (keep_ties) {
    const double last_key = (kept - 1)->key;
    kept = std::partition(kept, candidates_.end(),
                          [&](const Candidate& c) { return c.key == last_key; });
  }
  candidates_ = candidates_.first(static_cast<size_t>(kept - candidates_.begin()));
}

// Locally typical sampling (Meister et al. 2022): tokens whose surprise is nearest the entropy.
void Sampler::keep_typical(double typical_p, double inverse_temperature) {
  double total = 0, entropy = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  const double log_total = stable_log(total);
  for (Candidate& c : candidates_) {
    c.key = log_total + (static_cast<double>(max_) - static_cast<double>(c.logit)) *
                            inverse_temperature;  // surprise, nats
    entropy += c.weight / total * c.key;
  }
  for (Candidate& c : candidates_) c.key = std::abs(c.key - entropy);
  keep_mass(typical_p * total, true);
}

// candidates_ = the largest tokens that together weigh at least top_p * total: ever lower
// thresholds, down to where all that is below weighs less than the rest.
void Sampler::collect_mass(std::span<const float> logits, double top_p, double total,
                           double inverse_temperature) {
  const double rest = (1 - top_p) * total / static_cast<double>(logits.size());
  const double widest = rest > 1e-300 ? 1e-6 - stable_log(rest) : 700;  // units of the temperature
  for (double width = 2;; width *= 2) {
    const double at_least = max_ - std::min(width, widest) / inverse_temperature;
    collect(logits, at_least);
    if (weigh(inverse_temperature) >= top_p * total || width >= widest) return;
  }
}

// Runs top-k, top-p, min-p and typical-p: candidates_ is what is left, in no particular order.
void Sampler::choose(std::span<const float> logits, const SamplerParams& params) {
  const double inverse = 1.0 / params.temperature;
  const bool top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size();
  double total = 0;
  if (top_k) {
    collect_top(logits, params.top_k);
    total = weigh(inverse);
  } else if (params.top_p < 1) {
    total = sum_exp(logits, max_, inverse);
    collect_mass(logits, params.top_p, total, inverse);
  } else {
    // min_p alone can bound what is worth collecting; the exact test comes below.
    const double width = params.min_p > 0 ? 1e-6 - stable_log(std::max(params.min_p, 1e-300)) : 700;
    collect(logits, width < 700 ? max_ - width * params.temperature : kMinusInfinity);
    weigh(inverse);
  }
  if (params.top_p < 1) {
    for (Candidate& c : candidates_) c.key = -static_cast<double>(c.logit);
    keep_mass(params.top_p * total, false);
  }
  if (params.min_p > 0)  // the largest weight is 1
    keep_if([&](const Candidate& c) { return c.weight >= params.min_p; });
  if (params.typical_p < 1) keep_typical(params.typical_p, inverse);
}

TokenId Sampler::draw(double inverse_temperature, uint64_t noise) const {
  Best best;
  for (const Candidate& c : candidates_) {
    const double scaled = static_cast<double>(c.logit) * inverse_temperature;
    const uint64_t bits = token_bits(noise, c.token);
    if (std::countl_one(bits) < leading_ones_needed(best.score, scaled)) continue;
    best.offer(scaled + gumbel_of_bits(bits), c.token);
  }
  return best.token;
}

// The argmax over the whole vocabulary. The block of the largest logit sets a score to beat; most
// other tokens are then ruled out by the leading bits of their hash, without a logarithm.
TokenId Sampler::draw_all(std::span<const float> logits, double inverse_temperature,
                          uint64_t noise) const {
  Best best;
  const auto visit = [&](size_t block) {
    const int needed = leading_ones_needed(
        best.score, static_cast<double>(block_max_[block]) * inverse_temperature);
    if (needed > 52) return;  // the noise ends there
    const uint64_t least = needed == 0 ? 0 : ~uint64_t{0} << (64 - needed);
    const size_t begin = block * kScanBlock, n = std::min(logits.size() - begin, kScanBlock);
    uint64_t bits[kScanBlock];
    hash_block(noise, begin, bits);
    for (size_t i = 0; i < n; i++) {
      if (bits[i] < least) continue;
      best.offer(
          static_cast<double>(logits[begin + i]) * inverse_temperature + gumbel_of_bits(bits[i]),
          static_cast<TokenId>(begin + i));
    }
  };
  const auto first = static_cast<size_t>(std::find(block_max_.begin(), block_max_.end(), max_) -
                                         block_max_.begin());
  visit(first);
  for (size_t block = 0; block < block_max_.size(); block++)
    if (block != first && block_max_[block] > kMinusInfinity) visit(block);
  return best.token;
}

// Log-probabilities of the model's own distribution: the chosen token's and the n_top largest.
void Sampler::add_logprobs(std::span<const float> logits, int n_top, Sampled& sampled) {
  const double log_total = log_sum_exp(logits);
  const auto logprob = [&](TokenId token) {
    return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(token)]) - log_total);
  };
  sampled.logprob = logprob(sampled.token);
  if (n_top == 0) return;
  scan(logits);
  const auto n = std::min(static_cast<size_t>(n_top), logits.size());
  collect_top(logits, static_cast<int64_t>(n));
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  });
  for (const Candidate& c : candidates_.first(std::min(n, candidates_.size())))
    sampled.top.push_back({c.token, logprob(c.token)});
}

}  // namespace tinyllama
