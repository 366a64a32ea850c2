// Recipes of training runs, right and wrong ones, and the schedules that they ask for.
#include "train/recipe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "support/assets.h"

namespace tinyllama {
namespace {

using namespace testing;

const std::string kSmall =
    "[model]\npreset = \"stories-260k\"\n"
    "[data]\ntrain = [{path = \"tokens\"}]\n"
    "[train]\nsteps = 40\n";

class RecipeTest : public ::testing::Test {
 protected:
  Recipe read(const std::string& text, const std::vector<std::string>& overrides = {}) {
    AtomicFile file(path_);
    file.write(text);
    file.commit();
    return read_recipe(path_, overrides);
  }
  // What the error says behind the folder's name.
  std::string error(const std::string& text, const std::vector<std::string>& overrides = {}) {
    try {
      read(text, overrides);
    } catch (const Error& caught) {
      std::string message = caught.what();
      const size_t at = message.find(path_);
      return at == std::string::npos ? message : message.erase(at, path_.size());
    }
    return "no error";
  }

  TemporaryFolder folder_;
  std::string path_ = folder_ / "small.toml";
};

TEST_F(RecipeTest, AModelDataAndStepsAreEnough) {
  const Recipe recipe = read(kSmall);
  EXPECT_EQ(recipe.model.preset, "stories-260k");
  ASSERT_EQ(recipe.data.train.size(), 1u);
  EXPECT_EQ(recipe.data.train[0].path, "tokens");
  EXPECT_EQ(recipe.data.train[0].weight, 1);
  EXPECT_TRUE(recipe.data.mask_documents);
  EXPECT_EQ(recipe.train.steps, 40);
  EXPECT_EQ(recipe.train.tokens_per_step, 2048);
  EXPECT_EQ(recipe.optimizer.warmup_steps, 4);
  EXPECT_DOUBLE_EQ(recipe.optimizer.min_lr, 4e-5);
  EXPECT_EQ(recipe.output.dir, "runs/small");
}

TEST_F(RecipeTest, EveryKeyIsRead) {
  const Recipe r = read(
      "[model]\nconfig = 'c.json'\n"
      "[data]\ntrain = [{path = 'a', weight = 7}, {path = 'b', weight = 3}]\nvalidation = 'v'\n"
      "order = 'sequential'\nmask_documents = false\n"
      "[train]\nsteps = 9\ncontext = 16\ntokens_per_step = 256\nmicro_batch = 2\nseed = 5\n"
      "precision = 'fp32'\nthreads = 3\n"
      "[optimizer]\nname = 'adamw'\nlr = 1\nmin_lr = 0.5\nwarmup_steps = 2\nschedule = 'wsd'\n"
      "decay_steps = 4\nbetas = [0.8, 0.99]\nweight_decay = 0\ndecay_norms = true\nclip = 0\n"
      "[output]\ndir = 'o'\ncheckpoint_every = 0\nkeep = 7\n");
  EXPECT_EQ(r.model.config, "c.json");
  EXPECT_EQ(r.data.train[1].path, "b");
  EXPECT_EQ(r.data.train[1].weight, 3);
  EXPECT_EQ(r.data.validation, "v");
  EXPECT_EQ(r.data.order, Order::sequential);
  EXPECT_FALSE(r.data.mask_documents);
  EXPECT_EQ(r.train.seed, 5u);
  EXPECT_EQ(r.train.precision, "fp32");
  EXPECT_EQ(r.train.threads, 3);
  EXPECT_EQ(r.optimizer.schedule, ScheduleKind::wsd);
  EXPECT_EQ(r.optimizer.decay_steps, 4);
  EXPECT_EQ(r.optimizer.beta1, 0.8);
  EXPECT_EQ(r.optimizer.beta2, 0.99);
  EXPECT_EQ(r.optimizer.weight_decay, 0);
  EXPECT_TRUE(r.optimizer.decay_norms);
  EXPECT_EQ(r.optimizer.clip, 0);
  EXPECT_EQ(r.output.dir, "o");
  EXPECT_EQ(r.output.checkpoint_every, 0);
  EXPECT_EQ(r.output.keep, 7);
  const LoaderOptions loader = r.loader(1, 4);
  EXPECT_EQ(loader.blocks_per_step, 16);
  EXPECT_EQ(loader.micro_batch, 2);
  EXPECT_EQ(loader.rank, 1);
}

TEST_F(RecipeTest, UnknownKeysNameTheLineAndTheNearest) {
  EXPECT_EQ(error(kSmall + "[optimiser]\nlr = 1\n"),
            "[recipe] :7: unknown table optimiser, did you mean optimizer?");
  EXPECT_EQ(error(kSmall + "[optimizer]\nlr = 1\nwarmup = 3\n"),
            "[recipe] :9: unknown key optimizer.warmup (known: name, lr, min_lr, warmup_steps, "
            "schedule, decay_steps, betas, weight_decay, decay_norms, clip)");
  EXPECT_EQ(error(kSmall + "sed = 3\n"), "[recipe] :7: unknown key train.sed, did you mean seed?");
  EXPECT_EQ(error("steps = 3\n" + kSmall).substr(0, 29), "[recipe] :1: unknown key step");
  EXPECT_EQ(error(kSmall, {"data.train=[{path='a', wieght=3}]"}),
            "[recipe] --set data.train=[{path='a', wieght=3}]: unknown key data.train.wieght, did "
            "you mean weight?");
}

TEST_F(RecipeTest, TypesAndRangesAreChecked) {
  const auto with = [&](const std::string& setting) { return error(kSmall, {setting}); };
  EXPECT_EQ(error(kSmall + "context = \"long\"\n"),
            "[recipe] :7: train.context: want a whole number in [1, 1048576], got the text 'long'");
  EXPECT_EQ(with("train.steps=0"),
            "[recipe] --set train.steps=0: train.steps: want a whole number in [1, 1099511627776], "
            "got 0");
  EXPECT_EQ(with("train.steps=1.5"),
            "[recipe] --set train.steps=1.5: train.steps: want a whole number in [1, "
            "1099511627776], got 1.5");
  EXPECT_EQ(with("optimizer.lr=nan").substr(0, 65),
            "[recipe] --set optimizer.lr=nan: optimizer.lr: want a number in [");
  EXPECT_EQ(
      with("optimizer.clip=-1"),
      "[recipe] --set optimizer.clip=-1: optimizer.clip: want a number of at least 0, got -1");
  EXPECT_NE(with("optimizer.betas=[0.9, 1.0]").find("want a number in [0, "), std::string::npos);
  EXPECT_NE(with("optimizer.betas=[0.9]").find("got a list of 1"), std::string::npos);
  EXPECT_NE(with("optimizer.schedule=cosin").find("did you mean cosine?"), std::string::npos);
  EXPECT_NE(with("data.train=[]").find("got an empty one"), std::string::npos);
  EXPECT_NE(with("data.train=['a']").find("got the text 'a'"), std::string::npos);
  EXPECT_NE(with("data.train=[{weight=1}]").find("has no path"), std::string::npos);
  EXPECT_NE(with("data.mask_documents=1").find("want true or false, got 1"), std::string::npos);
  EXPECT_NE(with("model.preset=tinyllama-1.2b").find("did you mean tinyllama-1.1b?"),
            std::string::npos);
  EXPECT_NE(with("train=3").find("train: want a table, got 3"), std::string::npos);
}

TEST_F(RecipeTest, WhatIsMissingIsNamed) {
  EXPECT_EQ(error(""), "[recipe] model: want one of preset, config and init, got none");
  EXPECT_EQ(error("[model]\ninit='x'\n").substr(0, 32), "[recipe] data.train is missing: ");
  EXPECT_EQ(error("[model]\ninit='x'\n[data]\ntrain=[{path='a'}]\n"),
            "[recipe] train.steps is missing: want the number of optimizer steps");
  EXPECT_EQ(error("a = [1\nb"),
            "[recipe] :2: Error while parsing array: expected comma or closing "
            "']', saw 'b'");
}

TEST_F(RecipeTest, ContradictionsAreRefused) {
  const auto with = [&](const std::string& setting) { return error(kSmall, {setting}); };
  EXPECT_EQ(with("model.init=folder"),
            "[recipe] model: want one of preset, config and init, got more than one");
  EXPECT_EQ(with("train.tokens_per_step=5000"),
            "[recipe] train.tokens_per_step = 5000 is no multiple of micro_batch * context * ranks "
            "= 1 * 2048 * 1 = 2048: 4096 or 6144 would do");
  EXPECT_EQ(with("train.tokens_per_step=100"),
            "[recipe] train.tokens_per_step = 100 is no multiple of micro_batch * context * ranks "
            "= 1 * 2048 * 1 = 2048: 2048 would do");
  EXPECT_THROW((void)read(kSmall).loader(0, 2), Error);
  EXPECT_NO_THROW((void)read(kSmall, {"train.tokens_per_step=4096"}).loader(0, 2));
  EXPECT_NE(with("optimizer.min_lr=0.1").find("is above optimizer.lr"), std::string::npos);
  EXPECT_NE(with("optimizer.warmup_steps=41").find("more than train.steps = 40"),
            std::string::npos);
  EXPECT_NE(with("optimizer.decay_steps=4").find("belongs to schedule"), std::string::npos);
}

TEST_F(RecipeTest, SettingsComeOnTop) {
  const Recipe recipe =
      read(kSmall, {"train.steps=100", "output.dir=/tmp/a run", "train.steps=50",
                    "optimizer.betas=[0.5, 0.6]", "model.preset=\"stories-15m\""});
  EXPECT_EQ(recipe.train.steps, 50);
  EXPECT_EQ(recipe.output.dir, "/tmp/a run");
  EXPECT_EQ(recipe.optimizer.beta1, 0.5);
  EXPECT_EQ(recipe.model.preset, "stories-15m");
  EXPECT_EQ(recipe.data.train[0].path, "tokens");
  for (const char* wrong : {"train.steps", "=3", "train.steps=", "train.steps=[1", "a b=3",
                            "train.steps=3\n[output]", "x=1\ny=2"})
    EXPECT_NE(error(kSmall, {wrong}), "no error") << wrong;
}

TEST(Recipes, ThoseInTheTree) {
  const std::filesystem::path recipes = TINYLLAMA_SOURCE_DIR "/recipes";
  const Recipe large = read_recipe(recipes / "tinyllama-1.1b.toml");
  EXPECT_EQ(large.loader().blocks_per_step, 1024);
  EXPECT_EQ(large.train.steps * large.train.tokens_per_step / 1000000000, 3000);
  EXPECT_DOUBLE_EQ(learning_rate(large.schedule(), 2000), 4e-4);
  EXPECT_DOUBLE_EQ(learning_rate(large.schedule(), large.train.steps), 4e-5);
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(recipes)) {
    const Recipe recipe = read_recipe(entry.path());
    EXPECT_EQ(recipe.model.preset, entry.path().stem()) << entry.path();
    EXPECT_EQ(recipe.output.dir, "runs/" + entry.path().stem().string());
    found++;
  }
  EXPECT_GE(found, 3);
}

TEST(Schedule, PyTorchsValues) {
  TINYLLAMA_NEEDS_ASSET("oracle/nano/lr_schedule.json");
  const auto oracle = nlohmann::json::parse(read_text_file(asset("oracle/nano/lr_schedule.json")));
  const auto check = [](const nlohmann::json& curve, const Schedule& schedule) {
    for (size_t i = 0; i < curve["it"].size(); i++)
      EXPECT_NEAR(learning_rate(schedule, curve["it"][i]), curve["lr"][i].get<double>(),
                  schedule.lr * 4e-16)
          << curve["it"][i];
  };
  check(oracle["tinyllama_get_lr"], {ScheduleKind::cosine, 4e-4, 4e-5, 20, 100});
  check(oracle["hf_get_cosine_schedule_with_warmup"], {ScheduleKind::cosine, 4e-4, 0, 20, 100});
}

TEST(Schedule, Cosine) {
  const Schedule s{ScheduleKind::cosine, 1, 0, 0, 1000};
  for (int64_t step = 0; step <= 1000; step++)
    EXPECT_NEAR(learning_rate(s, step), 0.5 * (1 + std::cos(M_PI * step / 1000)), 4e-16);
}

TEST(Schedule, OtherShapes) {
  const Schedule wsd{ScheduleKind::wsd, 1, 0.2, 10, 100, 20};
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 5), 0.5);
  EXPECT_EQ(learning_rate(wsd, 10), 1);
  EXPECT_EQ(learning_rate(wsd, 80), 1);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 90), 0.6);
  EXPECT_EQ(learning_rate(wsd, 100), 0.2);
  const Schedule linear{ScheduleKind::linear, 1, 0.2, 10, 100};
  EXPECT_DOUBLE_EQ(learning_rate(linear, 55), 0.6);
  EXPECT_EQ(learning_rate(linear, 1000), 0.2);
  const Schedule constant{ScheduleKind::constant, 1, 0.2, 10, 100};
  EXPECT_DOUBLE_EQ(learning_rate(constant, 1), 0.1);
  EXPECT_EQ(learning_rate(constant, 100), 1);
  // All steps are warm-up.
  EXPECT_EQ(learning_rate({ScheduleKind::cosine, 1, 0.2, 10, 10}, 10), 0.2);
}

}  // namespace
}  // namespace tinyllama
