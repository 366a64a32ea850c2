// Sampling options, see sampling.h.
#include "cli/sampling.h"

#include <fmt/format.h>

#include <charconv>
#include <random>

namespace tinyllama::cli {
namespace {

constexpr double kTemperature = 0.8, kTopP = 0.95;

std::pair<TokenId, float> parse_bias(const std::string& text) {
  TokenId token = 0;
  float bias = 0;
  const char* const end = text.data() + text.size();
  const auto [colon, code] = std::from_chars(text.data(), end, token);
  if (code == std::errc() && colon != end && *colon == ':') {
    const char* start = colon + 1;
    if (start != end && *start == '+') start++;
    const auto [last, bias_code] = std::from_chars(start, end, bias);
    if (bias_code == std::errc() && last == end) return {token, bias};
  }
  throw UsageError(fmt::format("--logit-bias: want ID:BIAS such as 42:-1.5, got '{}'", text));
}

}  // namespace

SamplerParams SamplingOptions::params(const Checkpoint& checkpoint) const {
  const GenerationDefaults& model = checkpoint.generation;
  SamplerParams p;
  p.temperature = temperature.value_or(model.temperature.value_or(kTemperature));
  p.top_k = top_k.value_or(model.top_k.value_or(0));
  p.top_p = top_p.value_or(model.top_p.value_or(kTopP));
  p.repetition_penalty = repetition_penalty.value_or(model.repetition_penalty.value_or(1));
  p.min_p = min_p;
  p.typical_p = typical_p;
  p.frequency_penalty = frequency_penalty;
  p.presence_penalty = presence_penalty;
  p.penalty_window = penalty_window;
  for (const std::string& text : logit_bias) p.logit_bias.push_back(parse_bias(text));
  p.seed = seed ? *seed : std::random_device()();
  return p;
}

void declare_sampling(Options& options, SamplingOptions& s) {
  options.group("Sampling");
  options.add(s.temperature,
              {.flags = "--temperature",
               .help = "Randomness; 0: always the likeliest token (unset: the model's, else 0.8)",
               .min = 0,
               .max = 100});
  options.add(s.top_k,
              {.flags = "--top-k", .help = "Only the K likeliest tokens; 0: off", .min = 0});
  options.add(s.top_p,
              {.flags = "--top-p",
               .help = "The likeliest tokens that sum to this probability (unset: the model's, "
                       "else 0.95); 1: off",
               .min = 0,
               .max = 1});
  options.add(s.min_p,
              {.flags = "--min-p",
               .help = "Only tokens at least this likely relative to the likeliest; 0: off",
               .min = 0,
               .max = 1});
  options.add(
      s.typical_p,
      {.flags = "--typical-p", .help = "Locally typical sampling; 1: off", .min = 0, .max = 1});
  options.add(s.repetition_penalty,
              {.flags = "--repetition-penalty",
               .help = "Divides the logits of tokens seen before (unset: the model's, "
                       "else 1: off)",
               .min = 0.01,
               .max = 100});
  options.add(s.frequency_penalty, {.flags = "--frequency-penalty",
                                    .help = "Taken from a token's logit for each time it was seen",
                                    .min = -100,
                                    .max = 100});
  options.add(s.presence_penalty, {.flags = "--presence-penalty",
                                   .help = "Taken from a token's logit once it was seen",
                                   .min = -100,
                                   .max = 100});
  options.add(s.penalty_window, {.flags = "--penalty-window",
                                 .help = "How many last tokens the penalties see; -1: all",
                                 .min = -1});
  options.add(s.logit_bias,
              {.flags = "--logit-bias",
               .help = "Added to a token's logit; -inf forbids it. May be given again",
               .placeholder = "ID:BIAS"});
  options.add(
      s.seed,
      {.flags = "--seed", .help = "Same seed, same text (unset: another each time)", .min = 0});
  options.group("Where it ends");
  options.add(s.stop,
              {.flags = "--stop", .help = "The answer ends before this text. May be given again"});
  options.add(
      s.context,
      {.flags = "--context", .help = "Positions a sequence may have; 0: the model's", .min = 0});
  options.add(s.when_full,
              {.flags = "--when-full",
               .help = "When the context is full: end, or drop the oldest tokens and go on",
               .choices = {"stop", "shift"}});
}

}  // namespace tinyllama::cli
