// `tinyllama pretrain` as a user drives it: a run from text to a model, killed and resumed.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/file.h"
#include "formats/checkpoint.h"
#include "formats/sentencepiece_model.h"
#include "support/assets.h"
#include "support/byte_vocab.h"
#include "support/process.h"
#include "train/metrics.h"

namespace tinyllama {
namespace {

using testing::Finished;
using testing::Process;
using testing::run_program;
using testing::TemporaryFolder;

class Pretrain : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    std::ofstream(path("tokenizer.model")) << make_sentencepiece(testing::letters_vocab());
    std::ofstream text(path("text.txt"));
    for (int i = 0; i < 400; i++)
      text << "the cat number " << i * 7919 % 100 << " sat on the mat\n<|end|>\n";
    text.close();
    const Finished made = run_program({"prepare", "--tokenizer", path("tokenizer.model"), "--out",
                                       path("tokens"), path("text.txt"), "--split", "<|end|>"});
    ASSERT_EQ(made.code, 0) << made.err;
    std::ofstream(path("recipe.toml"))
        << "[model]\npreset = \"stories-260k\"\n"
        << "[data]\ntrain = [{ path = \"" << path("tokens") << "\", weight = 1 }]\nvalidation = \""
        << path("tokens") << "\"\n[train]\nsteps = 12\ncontext = 64\n"
        << "tokens_per_step = 256\nmicro_batch = 2\n"
        << "precision = \"fp32\"\nthreads = 2\n"
        << "[optimizer]\nlr = 1e-2\nwarmup_steps = 2\n"
        << "[output]\ncheckpoint_every = 3\nkeep = 2\n";
  }
  static void TearDownTestSuite() { delete folder_; }

  static std::string path(const std::string& name) { return *folder_ / name; }
  static std::vector<std::string> command(const std::string& dir,
                                          const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"pretrain", path("recipe.toml"), "--set",
                                          "output.dir=" + path(dir)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  static std::string weights(const std::string& dir) {
    return read_text_file(path(dir) + "/last/model.safetensors");
  }
  static std::vector<StepMetrics> metrics(const std::string& dir) {
    return read_metrics(path(dir) + "/metrics.jsonl");
  }

 private:
  static inline TemporaryFolder* folder_ = nullptr;
};

TEST_F(Pretrain, LearnsAndLeavesAModelThatRuns) {
  for (const std::string precision : {"fp32", "bf16"}) {
    const std::string dir = "learns-" + precision;
    const Finished done = run_program(command(dir, {"--set", "train.precision=" + precision}));
    ASSERT_EQ(done.code, 0) << done.err;
    EXPECT_NE(done.out.find("plan     12 steps of 256 tokens in 2 micro-batches"),
              std::string::npos)
        << done.out;
    const std::vector<StepMetrics> steps = metrics(dir);
    ASSERT_EQ(steps.size(), 12u);
    EXPECT_LT(steps.back().loss, 0.8 * steps.front().loss);
    ASSERT_TRUE(steps.back().validation_loss);
    EXPECT_NEAR(*steps.back().validation_loss, steps.back().loss, 0.5);
    EXPECT_FALSE(std::filesystem::exists(path(dir) + "/step-00000006"));  // keep = 2
    EXPECT_TRUE(std::filesystem::exists(path(dir) + "/step-00000009"));
    const Finished text = run_program(
        {"generate", "-m", path(dir) + "/last", "-p", "the cat", "-n", "4", "--temperature", "0"});
    EXPECT_EQ(text.code, 0) << text.err;
    EXPECT_FALSE(text.out.empty());
  }
}

// Killed again and again, with and without a checkpoint to go back to, it ends with the bits of a
// run that never was.
TEST_F(Pretrain, KilledAndResumedIsBitForBitTheSame) {
  ASSERT_EQ(run_program(command("whole")).code, 0);
  ASSERT_EQ(run_program(command("whole-alone", {"--set", "train.threads=1"})).code, 0);
  EXPECT_TRUE(weights("whole") == weights("whole-alone"));
  int killed = 0;
  for (const int64_t at : {1, 2, 4, 7, 8, 11}) {
    Process process(command("killed", {"--resume"}), Process::Where::pipes);
    const std::string file = path("killed") + "/metrics.jsonl";
    while (!process.ends_within(std::chrono::milliseconds(1))) {
      if (!std::filesystem::exists(file)) continue;
      std::ifstream lines(file);  // not mapped: it is cut back meanwhile
      if (std::count(std::istreambuf_iterator<char>(lines), {}, '\n') < at) continue;
      process.signal(SIGKILL);
      killed++;
      break;
    }
    process.finish();
  }
  EXPECT_GE(killed, 2);  // the last ones may have ended first
  const Finished end = run_program(command("killed", {"--resume"}));
  EXPECT_EQ(end.code, 0) << end.err;
  EXPECT_TRUE(weights("whole") == weights("killed"));
  const std::vector<StepMetrics> want = metrics("whole"), got = metrics("killed");
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); i++) {
    EXPECT_EQ(got[i].step, want[i].step);
    EXPECT_EQ(got[i].loss, want[i].loss) << "step " << want[i].step;
    EXPECT_EQ(got[i].grad_norm, want[i].grad_norm) << "step " << want[i].step;
  }
}

TEST_F(Pretrain, PrepareVerifiesThePlan) {
  const Finished one = run_program({"prepare", "--verify", path("recipe.toml")});
  EXPECT_EQ(one.code, 0) << one.err;
  EXPECT_NE(one.out.find("12 steps on 1 ranks: "), std::string::npos) << one.out;
  EXPECT_NE(one.out.find("in 48 blocks"), std::string::npos) << one.out;
  const Finished two = run_program({"prepare", "--verify", path("recipe.toml"), "--ranks", "2"});
  EXPECT_EQ(two.code, 0) << two.err;
  EXPECT_NE(two.out.find("in 48 blocks"), std::string::npos) << two.out;
  const Finished three = run_program({"prepare", "--verify", path("recipe.toml"), "--ranks", "3"});
  EXPECT_EQ(three.code, 1) << three.out;
  EXPECT_EQ(run_program({"prepare"}).code, 2);
}

TEST_F(Pretrain, CtrlCSavesAndResumeGoesOn) {
  Process process(command("stopped", {"--set", "train.steps=100000"}), Process::Where::pipes);
  ASSERT_TRUE(process.wait_for("step ")) << process.errors;
  process.signal(SIGINT);
  EXPECT_EQ(process.finish(), 130) << process.errors;
  EXPECT_NE(process.output.find("--resume goes on"), std::string::npos) << process.output;
  const auto reached = static_cast<int64_t>(metrics("stopped").size());
  const Finished again = run_program(
      command("stopped", {"--resume", "--set", "train.steps=" + std::to_string(reached + 2)}));
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(static_cast<int64_t>(metrics("stopped").size()), reached + 2);
  EXPECT_EQ(metrics("stopped").back().run, 1);
}

TEST_F(Pretrain, RefusesWhatCannotBe) {
  ASSERT_EQ(run_program(command("used", {"--set", "train.steps=3"})).code, 0);
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {command("used"), "--resume"},
      {command("used", {"--resume", "--set", "train.seed=5"}), "another plan"},
      {command("new", {"--set", "train.context=1024", "--set", "train.tokens_per_step=2048"}),
       "512 positions"},
      {command("new",
               {"--set", "train.micro_batch=1000000", "--set", "train.tokens_per_step=64000000"}),
       "train.micro_batch"},
      {command("new", {"--set", "train.sed=5"}), "did you mean"}};
  for (const auto& [arguments, want] : cases) {
    const Finished done = run_program(arguments);
    EXPECT_EQ(done.code, 1) << want;
    EXPECT_NE(done.err.find(want), std::string::npos) << done.err;
  }
}

}  // namespace
}  // namespace tinyllama
