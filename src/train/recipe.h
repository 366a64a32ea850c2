// The recipe of a training run: a TOML file and `--set key=value` on top of it, checked as a whole
// before anything starts. Everything but a model, data.train and train.steps has a default.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/loader.h"
#include "data/mixture.h"
#include "train/schedule.h"

namespace tinyllama {

struct Recipe {
  struct Model {         // exactly one of the three
    std::string preset;  // a name of formats/config.h
    std::string config;  // a config.json: random weights of that shape
    std::string init;    // a checkpoint to start from
  } model;

  struct Data {
    std::vector<MixtureSource> train;
    std::string validation;  // a folder of tokens or a shard; empty: none
    Order order = Order::shuffled;
    bool mask_documents = true;  // attention ends at a document's boundary; false: the original's
  } data;

  struct Train {
    int64_t steps = 0;
    int64_t context = 2048;
    int64_t tokens_per_step = 0;  // of all ranks together; left out: micro_batch * context
    int64_t micro_batch = 1;      // blocks that a rank computes at a time
    uint64_t seed = 3407;
    std::string precision = "bf16";  // or "fp32"
    int threads = 0;                 // 0: one per core
  } train;

  struct Optimizer {
    std::string name = "adamw";
    double lr = 4e-4;
    double min_lr = 0;         // left out: lr / 10
    int64_t warmup_steps = 0;  // left out: 2000, at most a tenth of the steps
    ScheduleKind schedule = ScheduleKind::cosine;
    int64_t decay_steps = 0;  // wsd only; left out: the last tenth of the steps
    double beta1 = 0.9, beta2 = 0.95;
    double weight_decay = 0.1;
    bool decay_norms = false;  // true: the original's
    double clip = 1;           // 0: no clipping
  } optimizer;

  struct Out {
    std::string dir;                  // left out: runs/ and the recipe's name
    int64_t checkpoint_every = 1000;  // steps; 0: only at the end
    int64_t keep = 3;                 // newest checkpoints that stay
  } output;

  Schedule schedule() const;
  // What the loader of one rank does. Throws Error when tokens_per_step is no multiple of
  // micro_batch * context * ranks, naming values that would do.
  LoaderOptions loader(int rank = 0, int ranks = 1) const;
};

// Reads `path` with `overrides` ("train.steps=100": a dotted key and a TOML value; a bare word
// counts as text) applied in order. Throws Error with the line for a syntax error, an unknown key
// (with the nearest known one), a value of another type or out of its range, and a recipe that
// contradicts itself.
Recipe read_recipe(const std::string& path, const std::vector<std::string>& overrides = {});

}  // namespace tinyllama
