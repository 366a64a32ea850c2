// The sampler against a naive chain and against its own noise, and what it is made of: exp and log
// with fixed bits, and stop strings.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "infer/stable_math.h"
#include "infer/stop_matcher.h"
#include "support/sampling.h"
#include "support/tiny_model.h"

namespace tinyllama::testing {
namespace {

// ---- exp and log

TEST(StableMath, ExpAndLogAreAccurate) {
  double worst_exp = 0, worst_log = 0;
  for (uint64_t i = 0; i < 200000; i++) {
    const double u = uniform_open(hash_key(1, i)), x = -700 * u * u * u;
    worst_exp = std::max(worst_exp, std::abs(stable_exp(x) / std::exp(x) - 1));
    for (const double y : {u, 1 / u, 1 - u * 1e-9, 1 + u * 1e-3, u * 1e-300})
      if (y != 1) worst_log = std::max(worst_log, std::abs(stable_log(y) / std::log(y) - 1));
  }
  EXPECT_LE(worst_exp, 2 * 0x1p-52);
  EXPECT_LE(worst_log, 4 * 0x1p-52);
  EXPECT_EQ(stable_exp(0), 1);
  EXPECT_EQ(stable_log(1), 0);
  EXPECT_LT(stable_exp(-std::numeric_limits<double>::infinity()), 1e-300);
}

TEST(StableMath, LogSumExpMatchesLongDouble) {
  for (const size_t n : {1u, 7u, 8u, 31u, 32u, 33u, 100u, 2049u, 32000u}) {
    std::vector<float> x = random_logits(n, n, 3);
    if (n > 8) x[n / 2] = -kInfinity;
    long double sum = 0;
    for (const float v : x) sum += std::exp(static_cast<long double>(v));
    EXPECT_NEAR(log_sum_exp(x), static_cast<double>(std::log(sum)), 1e-13 * 20) << n;
  }
}

TEST(StableMath, BlockMaximaFindNanAndInfinity) {
  for (const size_t n : {1u, 32u, 50u, 1000u}) {
    std::vector<float> x = random_logits(n, n), maxima((n + kScanBlock - 1) / kScanBlock);
    ASSERT_TRUE(block_maxima(x, maxima));
    for (size_t b = 0; b < maxima.size(); b++) {
      const auto begin = x.begin() + static_cast<std::ptrdiff_t>(b * kScanBlock);
      EXPECT_EQ(maxima[b], *std::max_element(begin, std::min(x.end(), begin + kScanBlock)));
    }
    for (size_t i = 0; i < n; i++) {
      for (const float bad : {kNan, -kNan, kInfinity}) {
        std::vector<float> y = x;
        y[i] = bad;
        EXPECT_FALSE(block_maxima(y, maxima)) << i << " of " << n;
      }
    }
  }
}

TEST(StableMath, HashBlockIsSplitMix) {
  uint64_t bits[kScanBlock];
  hash_block(0x123456789abcdefull, 31968, bits);
  for (size_t i = 0; i < kScanBlock; i++)
    EXPECT_EQ(bits[i], splitmix64(0x123456789abcdefull ^ (31968 + i)));
}

// ---- The sampler

// The chain in its plainest form: sort and cut.
std::vector<double> naive_distribution(std::span<const float> logits, const SamplerParams& p,
                                       std::span<const TokenId> history) {
  const size_t n = logits.size();
  std::vector<float> x(logits.begin(), logits.end());
  for (const auto& [token, bias] : p.logit_bias) x[static_cast<size_t>(token)] += bias;
  if (p.penalty_window >= 0 && history.size() > static_cast<size_t>(p.penalty_window))
    history = history.last(static_cast<size_t>(p.penalty_window));
  for (const TokenId token : std::set<TokenId>(history.begin(), history.end())) {
    double v = x[static_cast<size_t>(token)];
    v = v < 0 ? v * p.repetition_penalty : v / p.repetition_penalty;
    v -= p.frequency_penalty *
         static_cast<double>(std::count(history.begin(), history.end(), token));
    x[static_cast<size_t>(token)] = static_cast<float>(v - p.presence_penalty);
  }
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::vector<bool> kept(n, true);
  for (size_t i = 0; i < n; i++) kept[i] = x[i] > -kInfinity;
  const auto probabilities = [&] {
    const float max = *std::max_element(x.begin(), x.end());
    std::vector<double> q(n, 0);
    double sum = 0;
    for (size_t i = 0; i < n; i++)
      if (kept[i]) sum += q[i] = std::exp((static_cast<double>(x[i]) - max) / p.temperature);
    for (double& v : q) v /= sum;
    return q;
  };
  if (p.temperature == 0) {
    std::vector<double> q(n, 0);
    q[static_cast<size_t>(std::max_element(x.begin(), x.end()) - x.begin())] = 1;
    return q;
  }
  // Keeps what comes first in `order` until the mass is reached.
  const auto cut = [&](double mass, const std::vector<double>& q) {
    double before = 0;
    size_t last = 0;
    for (size_t i = 0; i < n; i++) {
      if (before >= mass && i > 0)
        kept[order[i]] = false;
      else
        last = i;
      before += q[order[i]];
    }
    return order[last];
  };
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < n) {
    std::vector<float> sorted = x;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    for (size_t i = 0; i < n; i++)
      kept[i] = kept[i] && x[i] >= sorted[static_cast<size_t>(p.top_k) - 1];
  }
  if (p.top_p < 1) {
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return std::pair(kept[a] ? x[a] : -kInfinity, a) > std::pair(kept[b] ? x[b] : -kInfinity, b);
    });
    cut(p.top_p, probabilities());
  }
  if (p.min_p > 0) {
    const std::vector<double> q = probabilities();
    const double most = *std::max_element(q.begin(), q.end());
    for (size_t i = 0; i < n; i++) kept[i] = kept[i] && q[i] >= p.min_p * most;
  }
  if (p.typical_p < 1) {
    const std::vector<double> q = probabilities();
    double entropy = 0;
    for (const double v : q) entropy -= v > 0 ? v * std::log(v) : 0;
    std::vector<double> distance(n, 1e300);
    for (size_t i = 0; i < n; i++)
      if (kept[i]) distance[i] = std::abs(-std::log(q[i]) - entropy);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return distance[a] < distance[b]; });
    const std::vector<bool> before = kept;
    const size_t last = cut(p.typical_p, q);
    for (size_t i = 0; i < n; i++)
      kept[i] = before[i] && distance[i] <= distance[last] * (1 + 1e-12) + 1e-12;
  }
  return probabilities();
}

TEST(Sampler, MatchesTheNaiveChain) {
  for (const size_t vocab : {5u, 32u, 257u, 3000u}) {
    Sampler sampler(static_cast<int64_t>(vocab));
    for (uint64_t seed = 0; seed < 8; seed++) {
      std::vector<float> logits = random_logits(vocab, seed, seed % 2 == 0 ? 2 : 0.2);
      if (seed == 3) logits[vocab / 2] = -kInfinity;
      const std::vector<TokenId> history = random_tokens(60, static_cast<int64_t>(vocab), seed);
      const std::vector<SamplerParams> list = chains();
      for (size_t c = 0; c < list.size(); c++) {
        if (list[c].logit_bias.size() > 1 && vocab < 6) continue;
        SCOPED_TRACE("vocab " + std::to_string(vocab) + ", chain " + std::to_string(c) + ", seed " +
                     std::to_string(seed));
        const auto got = sampler.distribution(logits, list[c], history);
        const auto want = naive_distribution(logits, list[c], history);
        size_t differ = 0;
        double worst = 0;
        for (size_t i = 0; i < vocab; i++) {
          differ += (got[i] > 0) != (want[i] > 0) ? 1 : 0;
          worst = std::max(worst, std::abs(got[i] - want[i]));
        }
        EXPECT_EQ(differ, 0u);
        EXPECT_LE(worst, 1e-12);
      }
    }
  }
}

TEST(Sampler, DrawsTheArgmaxOfLogitPlusNoise) {
  const size_t vocab = 3001;
  Sampler sampler(vocab);
  for (uint64_t seed = 0; seed < 40; seed++) {
    const std::vector<float> logits = random_logits(vocab, seed, seed % 3 == 0 ? 0.1 : 2);
    const std::vector<TokenId> history = random_tokens(60, vocab, seed);
    for (const SamplerParams& params : chains()) {
      if (params.temperature == 0 || !params.logit_bias.empty() || params.repetition_penalty != 1 ||
          params.frequency_penalty != 0)
        continue;  // the logits as given are then the processed ones
      const NoiseKey key{seed, 3, 17 * seed};
      const auto kept = sampler.distribution(logits, params, history);
      double best = -1e300;
      TokenId want = kNoToken;
      for (size_t i = 0; i < vocab; i++) {
        if (kept[i] == 0) continue;
        const double score = static_cast<double>(logits[i]) * (1 / params.temperature) +
                             gumbel_noise(key, static_cast<TokenId>(i));
        if (score > best) best = score, want = static_cast<TokenId>(i);
      }
      EXPECT_EQ(sampler.sample(logits, params, history, key).token, want);
    }
  }
}

TEST(Sampler, NoiseIsBoundedGumbel) {
  double sum = 0, squares = 0;
  constexpr uint64_t kN = 200000;
  for (uint64_t i = 0; i < kN; i++) {
    const double g = gumbel_noise({i % 5, i % 7, i}, static_cast<TokenId>(i % 32000));
    sum += g, squares += g * g;
    EXPECT_GT(g, -3.7);
    EXPECT_LT(g, 36.8);
  }
  const double mean = sum / kN, variance = squares / kN - mean * mean;
  EXPECT_NEAR(mean, 0.5772156649, 5 * 1.2825 / std::sqrt(kN));  // five standard errors
  EXPECT_NEAR(variance, 1.644934, 0.06);
  // Each part of the key matters.
  const NoiseKey key{1, 2, 3};
  const std::set<double> noises = {gumbel_noise(key, 4),       gumbel_noise({2, 2, 3}, 4),
                                   gumbel_noise({1, 3, 3}, 4), gumbel_noise({1, 2, 4}, 4),
                                   gumbel_noise(key, 5),       gumbel_noise({2, 1, 3}, 4)};
  EXPECT_EQ(noises.size(), 6u);
}

// Pearson's statistic of draws at positions 0, 1, ... against distribution(); its mean is the
// degrees of freedom, its deviation sqrt(2 * that).
TEST(Sampler, FrequenciesFollowTheDistribution) {
  const std::vector<float> logits = random_logits(48, 5, 1);
  Sampler sampler(48);
  const std::vector<TokenId> history = {1, 2, 2, 3};
  size_t chain = 0;
  for (const SamplerParams& params : chains()) {
    SCOPED_TRACE(chain++);
    const std::vector<double> p = sampler.distribution(logits, params, history);
    constexpr int kDraws = 40000;
    std::vector<int> counts(48);
    for (uint64_t position = 0; position < kDraws; position++)
      counts[static_cast<size_t>(
          sampler.sample(logits, params, history, {11, 1, position}).token)]++;
    double statistic = 0, rest_expected = 0;
    int freedom = -1, rest = 0;
    for (size_t i = 0; i < 48; i++) {
      EXPECT_TRUE(p[i] > 0 || counts[i] == 0);
      const double expected = p[i] * kDraws;
      if (expected < 10) {  // pooled, as the statistic wants
        rest_expected += expected, rest += counts[i];
        continue;
      }
      freedom++;
      statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    if (rest_expected >= 10) {
      freedom++;
      statistic += (rest - rest_expected) * (rest - rest_expected) / rest_expected;
    }
    EXPECT_LE(statistic, freedom + 4.5 * std::sqrt(2.0 * std::max(freedom, 1)));
  }
}

TEST(Sampler, TiesGoToTheLowestId) {
  std::vector<float> logits(100, 1.0f);
  Sampler sampler(100);
  SamplerParams greedy;
  greedy.temperature = 0;
  EXPECT_EQ(sampler.sample(logits, greedy, {}, {}).token, 0);
  logits[40] = logits[77] = 2;
  EXPECT_EQ(sampler.sample(logits, greedy, {}, {}).token, 40);
  logits[9] = 0.0f, logits[3] = -0.0f;
  for (size_t i = 0; i < 100; i++)
    if (i != 9 && i != 3) logits[i] = -1;
  EXPECT_EQ(sampler.sample(logits, greedy, {}, {}).token, 3);  // -0 equals 0
}

// At a temperature so low that noise vanishes in the rounding of the scores, all are equal; and
// top-p leaves the candidates in disorder.
TEST(Sampler, EqualScoresGoToTheLowestId) {
  const std::vector<float> logits(3000, 1.0f);
  Sampler sampler(3000);
  for (const double top_p : {1.0, 0.9, 0.3}) {
    const SamplerParams params{.temperature = 1e-20, .top_p = top_p};
    const auto p = sampler.distribution(logits, params, {});
    const auto first = std::find_if(p.begin(), p.end(), [](double x) { return x > 0; });
    EXPECT_EQ(sampler.sample(logits, params, {}, {1, 2, 3}).token, first - p.begin());
  }
}

TEST(Sampler, IsAPureFunction) {
  const std::vector<float> logits = random_logits(3000, 1), other = random_logits(3000, 2);
  const std::vector<TokenId> history = random_tokens(50, 3000, 1);
  Sampler used(3000);
  for (const SamplerParams& params : chains()) {
    Sampler fresh(3000);
    for (uint64_t position = 0; position < 20; position++) {
      used.sample(other, chains()[position % 18], history, {9, 9, 9}, 5);
      EXPECT_EQ(used.sample(logits, params, history, {1, 2, position}).token,
                fresh.sample(logits, params, history, {1, 2, position}).token);
    }
  }
}

TEST(Sampler, LogprobsAreTheModelsOwn) {
  const std::vector<float> logits = random_logits(3000, 4);
  Sampler sampler(3000);
  SamplerParams params{.temperature = 0.5, .top_k = 3, .repetition_penalty = 2};
  const std::vector<TokenId> history = random_tokens(500, 3000, 1);
  long double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<long double>(x));
  for (const int n : {0, 1, 5, 2000, 3000, 5000}) {
    const Sampled s = sampler.sample(logits, params, history, {1, 2, 3}, n);
    EXPECT_EQ(s.token, sampler.sample(logits, params, history, {1, 2, 3}).token);
    const auto logprob = [&](TokenId t) {
      return static_cast<double>(logits[static_cast<size_t>(t)]) -
             static_cast<double>(std::log(sum));
    };
    EXPECT_NEAR(s.logprob, logprob(s.token), 1e-5);
    ASSERT_EQ(s.top.size(), std::min<size_t>(static_cast<size_t>(n), 3000));
    for (size_t i = 0; i < s.top.size(); i++) {
      EXPECT_NEAR(s.top[i].logprob, logprob(s.top[i].token), 1e-5);
      if (i == 0) continue;
      const float a = logits[static_cast<size_t>(s.top[i - 1].token)],
                  b = logits[static_cast<size_t>(s.top[i].token)];
      EXPECT_TRUE(a > b || (a == b && s.top[i - 1].token < s.top[i].token));
    }
  }
  EXPECT_EQ(sampler.sample(logits, params, history, {1, 2, 3}).logprob, 0);
}

TEST(Sampler, RefusesBrokenLogitsAndParameters) {
  Sampler sampler(100);
  std::vector<float> logits = random_logits(100, 1);
  for (const float bad : {kNan, kInfinity}) {
    for (const SamplerParams& params : chains()) {
      std::vector<float> broken = logits;
      broken[63] = bad;
      const std::string message = error_of([&] { sampler.sample(broken, params, {}, {}); });
      EXPECT_NE(message.find("token 63"), std::string::npos) << message;
    }
  }
  const std::vector<float> nothing(100, -kInfinity);
  EXPECT_THROW(sampler.sample(nothing, {}, {}, {}), Error);
  const auto refused = [&](SamplerParams params, const std::string& name) {
    const std::string message = error_of([&] { sampler.sample(logits, params, {}, {}); });
    EXPECT_NE(message.find(name), std::string::npos) << message;
  };
  refused({.temperature = -1}, "temperature");
  refused({.temperature = NAN}, "temperature");
  refused({.top_k = -1}, "top_k");
  refused({.top_p = 1.1}, "top_p");
  refused({.min_p = -0.1}, "min_p");
  refused({.typical_p = NAN}, "typical_p");
  refused({.repetition_penalty = 0}, "repetition_penalty");
  refused({.frequency_penalty = NAN}, "frequency_penalty");
  refused({.presence_penalty = INFINITY}, "presence_penalty");
  refused({.penalty_window = -2}, "penalty_window");
  refused({.logit_bias = {{100, 1.0f}}}, "[0, 100), got 100");
  refused({.logit_bias = {{1, kNan}}}, "token 1");
  EXPECT_EQ(error_of([&] { sampler.sample(logits, {}, {}, {}); }), "no error");
}

TEST(Sampler, ExtremeValuesStayInRange) {
  Sampler sampler(64);
  std::vector<float> logits(64, -3e38f);
  logits[10] = 3e38f, logits[11] = -kInfinity;
  const std::vector<TokenId> history = {10, 11, 12};
  for (const double temperature : {0.0, 1e-40, 1e-20, 1.0, 1e20}) {
    for (const double penalty : {1.0, 1e-6, 1e6}) {
      const SamplerParams params{.temperature = temperature, .repetition_penalty = penalty};
      const auto p = sampler.distribution(logits, params, history);
      EXPECT_NEAR(std::accumulate(p.begin(), p.end(), 0.0), 1, 1e-12);
      EXPECT_EQ(p[11], 0);
      EXPECT_NE(sampler.sample(logits, params, history, {1, 1, 1}).token, 11);
    }
  }
}

// ---- Stop strings

TEST(StopMatcher, DoesNotDependOnThePieces) {
  const std::vector<std::vector<std::string>> lists = {
      {},       {"ab"},         {"aab", "b"},     {"abab", "ba"},
      {"aaaa"}, {"abcd", "bc"}, {"\n\n", "</s>"}, {"é", "日本"}};
  const std::vector<std::string> alphabet = {"a",    "b", "c", "d",  "\n",
                                             "</s>", "é", "è", "日", "本"};
  for (uint64_t seed = 0; seed < 3000; seed++) {
    const auto& stops = lists[seed % lists.size()];
    std::vector<std::string> pieces;
    std::string text, streamed;
    const uint64_t letters = seed % 3 == 0 ? 2 : alphabet.size();
    for (uint64_t i = 0; i < 12; i++) {
      std::string piece;
      for (uint64_t k = 0; k < hash_key(seed, i) % 4; k++)
        piece += alphabet[hash_key(seed, i, k) % letters];
      pieces.push_back(piece);
      text += piece;
    }
    const auto [want, matched] = cut_at_stop(text, stops);
    StopMatcher matcher(stops);
    for (const std::string& piece : pieces) {
      streamed += matcher.push(piece);
      ASSERT_TRUE(want.starts_with(streamed)) << "showed part of a stop";
    }
    streamed += matcher.flush();
    EXPECT_EQ(streamed, want);
    EXPECT_EQ(matcher.matched(), matched);
  }
}

TEST(StopMatcher, HoldsBackNoMoreThanItMust) {
  StopMatcher matcher(std::vector<std::string>{"END"});
  EXPECT_EQ(matcher.push("abE"), "ab");
  EXPECT_EQ(matcher.push("N"), "");
  EXPECT_EQ(matcher.push("x"), "ENx");
  EXPECT_EQ(matcher.push("EN"), "");
  EXPECT_EQ(matcher.push("Dy"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.push("z") + matcher.flush(), "");
}

}  // namespace
}  // namespace tinyllama::testing
