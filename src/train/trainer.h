// A training run: recipe in, checkpoints and metrics out. Steps of several micro-batches, each
// forward, loss and backward; then clipping, AdamW and the next learning rate. What a step computes
// is a function of the recipe, the data and the steps before alone, so that a run which resumes
// from a checkpoint gives the bits of one that never stopped.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/parallel.h"
#include "data/loader.h"
#include "model/backward.h"
#include "model/optimizer.h"
#include "train/checkpoints.h"
#include "train/recipe.h"

namespace tinyllama {

// What a run will be, before it starts.
struct TrainingPlan {
  int64_t parameters = 0;
  int64_t steps = 0, tokens_per_step = 0;
  int64_t micro_batches = 0;     // in a step
  double flops_per_token = 0;    // 6 (parameters - input embedding) + 12 layers hidden context
  Keep keep = Keep::everything;  // inputs where everything would take too much
  size_t weight_bytes = 0, gradient_bytes = 0, moment_bytes = 0, packed_bytes = 0,
         activation_bytes = 0;

  size_t bytes() const {
    return weight_bytes + gradient_bytes + moment_bytes + packed_bytes + activation_bytes;
  }
};

struct StepResult {
  int64_t step = 0;  // from 1
  double loss = 0;   // mean over the step's targets, nats
  double lr = 0, grad_norm = 0;
  double seconds = 0;
  int64_t tokens = 0;
};

inline constexpr int64_t kValidationTokens = 1 << 17;

class Trainer {
 public:
  // Reads the model that the recipe names, or makes one of random weights, and, with `resume`, the
  // newest checkpoint of output.dir. `vocab` is put into checkpoints whose model brings none.
  // Throws Error for data of another vocabulary, more memory than `memory` (bytes), a checkpoint of
  // another plan, and, without `resume`, an output.dir that has checkpoints.
  Trainer(const Recipe& recipe, Backend& backend, ThreadPool& pool, size_t memory, bool resume,
          const std::function<void(const std::string&)>& warn);

  const TrainingPlan& plan() const { return plan_; }
  int64_t steps_done() const { return counters_.step; }
  const Config& config() const { return like_.config; }
  const Loader& loader() const { return *loader_; }
  bool done() const { return counters_.step >= recipe_.train.steps; }

  // The next step. Throws Error when loss or gradients are not finite; weights and checkpoints are
  // then those of the step before.
  StepResult step();
  // The mean loss over the validation data, at most kValidationTokens of it from its beginning;
  // nothing where the recipe names none.
  std::optional<double> validate();
  // Writes a checkpoint of where the run stands; its folder.
  std::string save();

 private:
  // Master weights and moments, by name.
  std::vector<StateArray> arrays();
  void resume(const Checkpoints::Found& found, const std::function<void(const std::string&)>& warn);
  void plan(size_t memory);
  void make_pass(int64_t max_documents);
  // Micro-batch i into micro_, with a pass that takes its documents.
  void read(const Loader& loader, int64_t i);

  Recipe recipe_;
  Backend& backend_;
  ThreadPool& pool_;
  Checkpoint like_;  // config, vocabulary, generation defaults
  std::unique_ptr<Parameters> weights_, gradients_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Llama> model_;
  TrainingPlan plan_;
  std::unique_ptr<TrainingPass> pass_;
  int64_t max_documents_ = 0;
  std::unique_ptr<Loader> loader_, validation_;
  Schedule schedule_;
  Checkpoints checkpoints_;
  TrainingCounters counters_;
  MicroBatch micro_;
};

}  // namespace tinyllama
