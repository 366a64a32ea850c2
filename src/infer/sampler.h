// Sampling as a pure function of logits, parameters, history and a noise key. A token is the argmax
// of processed logit + Gumbel noise keyed by (seed, sample, position, token id), so that the text
// does not depend on batch company, and a draft that shares the noise can be verified by equality.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "text/vocab.h"

namespace tinyllama {

// Applied in this order (Hugging Face's): logit bias, repetition penalty, frequency and presence
// penalties, temperature, top-k, top-p, min-p, typical-p. The defaults switch a step off.
struct SamplerParams {
  double temperature = 1;  // 0: greedy, the argmax of the penalized logits (ties: the lowest id)
  int top_k = 0;           // 0: off
  double top_p = 1;
  double min_p = 0;
  double typical_p = 1;
  double repetition_penalty =
      1;  // CTRL (Keskar et al. 2019): divides positive logits, multiplies others
  double frequency_penalty = 0;  // OpenAI's: logit -= frequency * count + presence * (count > 0)
  double presence_penalty = 0;
  int penalty_window = -1;  // last tokens the penalties see; -1: all
  std::vector<std::pair<TokenId, float>> logit_bias;
  uint64_t seed = 0;

  // Throws Error naming the parameter, its value and its range.
  void validate(int64_t vocab_size) const;
};

// Where the noise is drawn: `sample` numbers the n parallel samples of a request, `position` is the
// index of the token being chosen in its sequence.
struct NoiseKey {
  uint64_t seed = 0, sample = 0, position = 0;
};
// Gumbel(0, 1) noise of one token: -log(-log(u)), u a pure function of key and token.
double gumbel_noise(const NoiseKey& key, TokenId token);

struct TokenLogprob {
  TokenId token = kNoToken;
  float logprob = 0;  // natural log, of the model's unprocessed distribution
};
struct Sampled {
  TokenId token = kNoToken;
  float logprob = 0;              // as above; 0 unless logprobs were asked for
  std::vector<TokenLogprob> top;  // the n_top most likely, descending
};

// Scratch memory that makes sampling free of allocation; one per thread that samples.
class Sampler {
 public:
  explicit Sampler(int64_t vocab_size);

  // Chooses the next token. `history` is prompt and answer so far, oldest first. n_logprobs < 0: no
  // log-probabilities. A non-finite logit other than -inf throws Error.
  Sampled sample(std::span<const float> logits, const SamplerParams& params,
                 std::span<const TokenId> history, const NoiseKey& key, int n_logprobs = -1);

  // The distribution the sampler draws from, (vocab): for tests and for rejection sampling. Token
  // ids that the chain removed have probability 0.
  std::vector<double> distribution(std::span<const float> logits, const SamplerParams& params,
                                   std::span<const TokenId> history);

 private:
  struct Candidate {
    double weight;  // e^((logit - max) / temperature)
    double key;     // what keep_mass() orders by
    float logit;
    TokenId token;
  };
  std::span<const float> penalize(std::span<const float> logits, const SamplerParams& params,
                                  std::span<const TokenId> history);
  void scan(std::span<const float> logits);
  void collect(std::span<const float> logits, double at_least);
  void collect_top(std::span<const float> logits, int64_t k);
  void collect_mass(std::span<const float> logits, double top_p, double total,
                    double inverse_temperature);
  template <class Predicate>
  void keep_if(Predicate keep);
  void choose(std::span<const float> logits, const SamplerParams& params);
  double weigh(double inverse_temperature);
  void keep_mass(double mass, bool keep_ties);
  void keep_typical(double typical_p, double inverse_temperature);
  TokenId draw(double inverse_temperature, uint64_t noise) const;
  TokenId draw_all(std::span<const float> logits, double inverse_temperature, uint64_t noise) const;
  void add_logprobs(std::span<const float> logits, int n_top, Sampled& sampled);

  std::vector<float> logits_;        // (vocab) biased and penalized, when a request asks for it
  std::vector<float> block_max_;     // largest logit of each block of the vocabulary
  float max_ = 0;                    // largest of all
  std::vector<Candidate> pool_;      // (vocab)
  std::span<Candidate> candidates_;  // the front of it: what the chain has left
  std::vector<float> values_;        // what nth_element may disorder
  std::vector<double> weights_;
  std::vector<int32_t> counts_;   // (vocab) of the history; all zero between calls
  std::vector<TokenId> touched_;  // the tokens whose count is not zero
};

}  // namespace tinyllama
