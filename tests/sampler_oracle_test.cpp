// The sampler against the distributions of the PyTorch oracle: every chain, every logit vector. The
// oracle lies outside the repository; without it the test is skipped.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "infer/sampler.h"

namespace tinyllama {
namespace {

std::string oracle_path() {
  const char* assets = std::getenv("TINYLLAMA_ASSETS");
  const std::string folder = assets != nullptr ? assets : TINYLLAMA_SOURCE_DIR "/../shared";
  return folder + "/oracle/sampling.json";
}

SamplerParams params_of(const nlohmann::json& chain) {
  SamplerParams params;
  for (const auto& step : chain) {
    const std::string name = step.at(0);
    const auto& value = step.at(1);
    if (name == "temperature")
      params.temperature = value;
    else if (name == "top_k")
      params.top_k = value;
    else if (name == "top_p")
      params.top_p = value;
    else if (name == "min_p")
      params.min_p = value;
    else if (name == "typical_p")
      params.typical_p = value;
    else if (name == "repetition_penalty")
      params.repetition_penalty = value;
    else if (name == "presence_frequency") {
      params.presence_penalty = value.at(0);
      params.frequency_penalty = value.at(1);
    } else
      ADD_FAILURE() << "unknown step " << name;
  }
  return params;
}

TEST(SamplerOracle, EveryCase) {
  if (!std::filesystem::exists(oracle_path()))
    GTEST_SKIP() << "no " << oracle_path() << "; set TINYLLAMA_ASSETS to the folder of oracle/";
  std::ifstream file(oracle_path());
  const nlohmann::json oracle = nlohmann::json::parse(file);
  const auto history = oracle.at("history").get<std::vector<TokenId>>();
  double worst = 0;
  int cases = 0;
  for (const auto& c : oracle.at("cases")) {
    const auto logits =
        oracle.at("logits").at(c.at("logits").get<std::string>()).get<std::vector<float>>();
    const SamplerParams params = params_of(c.at("chain"));
    Sampler sampler(static_cast<int64_t>(logits.size()));
    const std::vector<double> got = sampler.distribution(logits, params, history);
    const auto want = c.at("probs").get<std::vector<double>>();
    SCOPED_TRACE(c.at("logits").get<std::string>() + " " + c.at("chain").dump());
    ASSERT_EQ(got.size(), want.size());
    std::set<size_t> kept;
    for (size_t i = 0; i < got.size(); i++) {
      EXPECT_EQ(got[i] > 0, want[i] > 0) << "token " << i;
      EXPECT_NEAR(got[i], want[i], 1e-6) << "token " << i;
      worst = std::max(worst, std::abs(got[i] - want[i]));
      if (got[i] > 0) kept.insert(i);
    }
    EXPECT_EQ(kept.size(), c.at("n_kept").get<size_t>());
    // What sample() draws comes from the kept set, whatever the noise.
    for (uint64_t position = 0; position < 50; position++) {
      const Sampled s = sampler.sample(logits, params, history, {1, 2, position});
      EXPECT_TRUE(kept.contains(static_cast<size_t>(s.token))) << "drew " << s.token;
    }
    cases++;
  }
  EXPECT_EQ(cases, 84);
  RecordProperty("worst_probability_error", std::to_string(worst));
  std::printf("%d cases, largest probability error %.3g\n", cases, worst);
}

}  // namespace
}  // namespace tinyllama
