#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "formats/hf_config.h"
#include "formats/hf_folder.h"
#include "model/random_weights.h"

namespace tinyllama {
namespace {

constexpr int64_t kFirstDocuments = 64;  // in a micro-batch; grows as they come

// The model to start from, without its weights where they are random.
Checkpoint describe_model(const Recipe& recipe) {
  Checkpoint checkpoint;
  if (!recipe.model.init.empty()) return open_checkpoint(recipe.model.init);
  checkpoint.name = recipe.model.preset;
  checkpoint.config =
      recipe.model.config.empty()
          ? preset(recipe.model.preset)
          : parse_hf_config(read_text_file(recipe.model.config), recipe.model.config).config;
  return checkpoint;
}

// Takes the data's tokenizer for a model that brings none, and its size for one of random weights.
// Throws Error when the two are not the same.
void settle_vocab(const Recipe& recipe, const Mixture& data, Checkpoint& model) {
  const ShardVocab& meant = data.vocab();
  const std::string& folder = data.folder(0).path();
  if (!model.vocab && std::filesystem::is_directory(folder)) model.vocab = open_hf_vocab(folder);
  if (model.vocab && meant.fingerprint != 0 && vocab_fingerprint(*model.vocab) != meant.fingerprint)
    fail(
        fmt::format("[train] {} was tokenized by another tokenizer than {} has: prepare it with "
                    "the model's",
                    folder, recipe.model.init));
  const auto size = static_cast<int64_t>(meant.vocab_size);
  if (!recipe.model.preset.empty() && size > 0) model.config.vocab_size = size;
  if (size > model.config.vocab_size)
    fail(
        fmt::format("[train] {} has a vocabulary of {} and the model one of {}: prepare it with "
                    "the model's tokenizer, or name another model",
                    folder, size, model.config.vocab_size));
}

void fill_weights(const Recipe& recipe, const Checkpoint& like, ThreadPool& pool,
                  Parameters& weights) {
  if (!recipe.model.init.empty()) return weights.read(like);
  weights.for_each([&](const TensorSpec& spec, Tensor tensor) {
    fill_random_rows(spec, like.config, recipe.train.seed, pool, 0, spec.rows, DType::f32,
                     tensor.data);
  });
}

AdamW adamw(const Recipe& recipe) {
  AdamW options;
  options.beta1 = recipe.optimizer.beta1;
  options.beta2 = recipe.optimizer.beta2;
  options.weight_decay = recipe.optimizer.weight_decay;
  options.decay_norms = recipe.optimizer.decay_norms;
  options.clip = recipe.optimizer.clip;
  return options;
}

// What the bits of a run depend on beside weights, in words: a resumed run must have the same.
std::string words_of(const Recipe& r, const Config& c) {
  std::string data;
  for (const MixtureSource& source : r.data.train)
    data += fmt::format("{} {};", source.path, source.weight);
  return fmt::format(
      "data {} order {} mask {} context {} tokens_per_step {} micro_batch {} seed {} precision {} "
      "adamw {} {} {} {} {} hidden {} layers {} vocabulary {}",
      data, static_cast<int>(r.data.order), r.data.mask_documents, r.train.context,
      r.train.tokens_per_step, r.train.micro_batch, r.train.seed, r.train.precision,
      r.optimizer.beta1, r.optimizer.beta2, r.optimizer.weight_decay, r.optimizer.decay_norms,
      r.optimizer.clip, c.hidden, c.n_layers, c.vocab_size);
}

bool has_checkpoints(const std::string& dir) {
  return std::filesystem::exists(dir + "/last");
}

std::string gigabytes(size_t bytes) {
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) / 1e9);
}

}  // namespace

Trainer::Trainer(const Recipe& recipe, Backend& backend, ThreadPool& pool, size_t memory,
                 bool resume, const std::function<void(const std::string&)>& warn)
    : recipe_(recipe),
      backend_(backend),
      pool_(pool),
      like_(describe_model(recipe)),
      checkpoints_(recipe.output.dir, recipe.output.keep) {
  if (!resume && has_checkpoints(recipe.output.dir))
    fail(
        fmt::format("[train] {} has checkpoints of a run: --resume goes on with it, or name "
                    "another output.dir",
                    recipe.output.dir));
  auto mixture = std::make_shared<const Mixture>(recipe.data.train, recipe.train.context,
                                                 recipe.data.order, recipe.train.seed);
  settle_vocab(recipe, *mixture, like_);
  if (recipe.train.context > like_.config.context)
    fail(fmt::format("[train] train.context {}: the model has {} positions", recipe.train.context,
                     like_.config.context));
  plan(memory);
  loader_ = std::make_unique<Loader>(std::move(mixture), recipe.loader());
  if (!recipe.data.validation.empty()) {
    auto held_out =
        std::make_shared<const Mixture>(std::vector<MixtureSource>{{recipe.data.validation, 1}},
                                        recipe.train.context, Order::sequential, 0);
    LoaderOptions options = recipe.loader();
    options.blocks_per_step = options.micro_batch;
    validation_ = std::make_unique<Loader>(std::move(held_out), options);
  }
  schedule_ = recipe.schedule();
  weights_ = std::make_unique<Parameters>(backend, like_.config);
  gradients_ = std::make_unique<Parameters>(backend, like_.config);
  optimizer_ = std::make_unique<Optimizer>(backend, like_.config, adamw(recipe));

  counters_ = {0, 0, recipe.train.seed, backend.name(), words_of(recipe, like_.config)};
  std::optional<Checkpoints::Found> found;
  if (resume) found = checkpoints_.newest([&](std::string_view text) { warn(std::string(text)); });
  if (found) {
    this->resume(*found, warn);
  } else {
    fill_weights(recipe, like_, pool, *weights_);
  }
  loader_->seek(counters_.position);
  const std::optional<DType> as =
      recipe.train.precision == "bf16" ? std::optional(DType::bf16) : std::nullopt;
  model_ = std::make_unique<Llama>(backend, weights_->checkpoint(), nullptr, as);
}

// Fills in plan_ and makes the pass: it keeps everything where that fits, else layers' inputs.
void Trainer::plan(size_t memory) {
  const Config& config = like_.config;
  const LoaderOptions loader = recipe_.loader();
  plan_.parameters = config.parameters();
  plan_.steps = recipe_.train.steps;
  plan_.tokens_per_step = loader.blocks_per_step * recipe_.train.context;
  plan_.micro_batches = loader.blocks_per_step / loader.micro_batch;
  const int64_t embedding = config.tied_embeddings ? 0 : config.vocab_size * config.hidden;
  plan_.flops_per_token =
      6.0 * static_cast<double>(plan_.parameters - embedding) +
      12.0 * static_cast<double>(config.n_layers * config.hidden * recipe_.train.context);
  const auto parameters = static_cast<size_t>(plan_.parameters);
  plan_.weight_bytes = plan_.gradient_bytes = 4 * parameters;
  plan_.packed_bytes = (recipe_.train.precision == "bf16" ? 2 : 4) * parameters;
  plan_.moment_bytes = 8 * parameters;
  for (const Keep keep : {Keep::everything, Keep::inputs}) {
    plan_.keep = keep;
    make_pass(kFirstDocuments);  // its memory is not touched before the first step
    plan_.activation_bytes = pass_->bytes();
    if (plan_.bytes() <= memory) return;
  }
  fail(fmt::format(
      "[train] this run needs {} (weights {}, packed {}, gradients {}, moments {}, activations {}) "
      "and there are {}: lower train.micro_batch or train.context, or take a smaller model",
      gigabytes(plan_.bytes()), gigabytes(plan_.weight_bytes), gigabytes(plan_.packed_bytes),
      gigabytes(plan_.gradient_bytes), gigabytes(plan_.moment_bytes),
      gigabytes(plan_.activation_bytes), gigabytes(memory)));
}

void Trainer::make_pass(int64_t max_documents) {
  max_documents_ = max_documents;
  pass_.reset();
  pass_ = std::make_unique<TrainingPass>(backend_, like_.config,
                                         recipe_.train.micro_batch * recipe_.train.context,
                                         max_documents, plan_.keep);
}

void Trainer::read(const Loader& loader, int64_t i) {
  loader.read(i, micro_);
  const auto documents = static_cast<int64_t>(micro_.documents.size());
  if (documents > max_documents_) make_pass(2 * documents);
}

StepResult Trainer::step() {
  const auto begin = std::chrono::steady_clock::now();
  StepResult result;
  result.step = counters_.step + 1;
  const double targets = static_cast<double>(loader_->step_targets());
  for (int64_t i = 0; i < loader_->micro_batches(); i++) {
    read(*loader_, i);
    result.loss += pass_->run(*model_, micro_.tokens, micro_.documents, micro_.targets, 1 / targets,
                              *gradients_);
    result.tokens += std::ssize(micro_.tokens);
  }
  result.loss /= targets;
  result.grad_norm = gradient_norm(backend_, *gradients_);
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm))
    fail(
        fmt::format("[train] step {}: loss {}, gradient norm {}: not finite. The checkpoints in "
                    "{} are good; try a lower optimizer.lr or a longer warmup_steps",
                    result.step, result.loss, result.grad_norm, recipe_.output.dir));
  result.lr = learning_rate(schedule_, result.step);
  optimizer_->step(*weights_, *gradients_, result.grad_norm, result.lr);
  model_->reload(weights_->checkpoint());
  loader_->next_step();
  counters_.step = result.step;
  counters_.position = loader_->position();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

std::optional<double> Trainer::validate() {
  if (!validation_) return std::nullopt;
  const auto blocks =
      std::min(validation_->mixture().n_blocks(0),
               static_cast<uint64_t>(kValidationTokens / recipe_.train.context + 1));
  double sum = 0;
  int64_t targets = 0;
  for (validation_->seek(0); validation_->position() < blocks; validation_->next_step()) {
    read(*validation_, 0);
    sum += pass_->loss(*model_, micro_.tokens, micro_.documents, micro_.targets);
    targets += std::ssize(micro_.targets) -
               std::count(micro_.targets.begin(), micro_.targets.end(), kNoTarget);
  }
  return sum / static_cast<double>(std::max<int64_t>(1, targets));
}

std::vector<StateArray> Trainer::arrays() {
  std::vector<StateArray> arrays;
  const auto add = [&](const std::string& prefix, const Parameters& parameters) {
    parameters.for_each([&](const TensorSpec& spec, Tensor tensor) {
      arrays.push_back({prefix + spec.name, {tensor.data, tensor.bytes()}});
    });
  };
  add("weights.", *weights_);
  add("first_moment.", optimizer_->first_moment());
  add("second_moment.", optimizer_->second_moment());
  return arrays;
}

void Trainer::resume(const Checkpoints::Found& found,
                     const std::function<void(const std::string&)>& warn) {
  const TrainingCounters& saved = found.state->counters();
  if (saved.plan != counters_.plan || saved.seed != counters_.seed)
    fail(fmt::format("[train] {} was written by another plan.\n  then: {}\n  now:  {}", found.path,
                     saved.plan, counters_.plan));
  if (saved.isa != counters_.isa)
    warn(fmt::format("the run began on {} and goes on on {}: other roundings", saved.isa,
                     counters_.isa));
  for (const StateArray& array : arrays()) {
    const std::span<const std::byte> from = found.state->array(array.name, array.bytes.size());
    std::memcpy(const_cast<std::byte*>(array.bytes.data()), from.data(), from.size());
  }
  optimizer_->set_steps(saved.step);
  counters_.step = saved.step;
  counters_.position = saved.position;
}

std::string Trainer::save() {
  Checkpoint model = weights_->checkpoint();
  model.vocab = like_.vocab;
  model.generation = like_.generation;
  const DType type = recipe_.train.precision == "bf16" ? DType::bf16 : DType::f32;
  checkpoints_.save(counters_, arrays(), [&](const std::string& path) {
    write_hf_folder(model, path, type, pool_, nullptr);
  });
  return checkpoints_.path(counters_.step);
}

}  // namespace tinyllama
