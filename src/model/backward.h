// Training's half of the model: the mirror of forward.cpp, and the optimizer's step.
#pragma once

#include <span>
#include <vector>

#include "backend/training.h"
#include "model/llama.h"
#include "model/parameters.h"

namespace tinyllama {

// Forward, loss and backward of micro-batches of up to `max_rows` tokens in up to `max_documents`
// documents, with all the memory that takes beside weights and gradients.
class TrainingPass {
 public:
  // `keep`: everything, or inputs (a layer's other activations are computed a second time).
  // `kv_type`: f32, f16 or bf16, what attention sees of keys and values.
  TrainingPass(Backend& backend, const Config& config, int64_t max_rows, int64_t max_documents,
               Keep keep, DType kv_type = DType::f32);

  // Adds `scale` times the gradient of the sum of the losses to `gradients`, and returns that sum
  // (not scaled). tokens, targets (rows): target[t] is the token after token[t], already shifted,
  // or kIgnoredTarget; `documents` are lengths, one behind the other, that make up all rows; each
  // begins at position 0 and sees itself alone. For the mean loss of a step of several
  // micro-batches, scale = 1 / (targets of the whole step that are not ignored). Throws Error for a
  // token or target outside the vocabulary or lengths that do not fit.
  double run(const Llama& model, std::span<const int32_t> tokens,
             std::span<const int64_t> documents, std::span<const int32_t> targets, double scale,
             Parameters& gradients);

  // Losses of the last run's rows, 0 where ignored.
  std::span<const float> losses() const { return losses_; }
  size_t bytes() const { return cache_.bytes() + activations_.bytes(); }

 private:
  Backend& backend_;
  KvCache cache_;
  Activations activations_;
  int64_t max_documents_;
  Batch batch_;
  std::vector<int32_t> blocks_;
  std::vector<float> losses_;
};

// The loss and the gradients of a batch whose forward pass has run with `activations` up to its
// head (Forward::run(n_layers)); every row has logits and every segment begins at position 0. Uses
// up what was kept. `losses` (rows). See TrainingPass::run for the rest.
void backward(const Llama& model, const Batch& batch, const KvCache& cache,
              Activations& activations, std::span<const int32_t> targets, double scale,
              Parameters& gradients, std::span<float> losses);

// AdamW over all parameters, its moments, and clipping by the global norm.
struct AdamW {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;
  bool decay_norms = false;  // TinyLlama's own run decayed them too
  double clip = 1;           // largest norm of all gradients together; 0: no clipping
};

// The norm of all gradients together. Not finite when one of them is not.
double gradient_norm(Backend& backend, const Parameters& gradients);

class Optimizer {
 public:
  Optimizer(Backend& backend, const Config& config, const AdamW& options);

  // Updates `weights` with `gradients`, whose gradient_norm() is `norm`; then clears them. The
  // caller reloads its Llama: model.reload(weights.checkpoint()).
  void step(Parameters& weights, Parameters& gradients, double norm, double lr);

  // The state that a checkpoint keeps: both moments and the number of steps done.
  Parameters& first_moment() { return m_; }
  Parameters& second_moment() { return v_; }
  int64_t steps() const { return steps_; }
  void set_steps(int64_t n) { steps_ = n; }

 private:
  Backend& backend_;
  AdamW options_;
  Parameters m_, v_;
  int64_t steps_ = 0;
};

}  // namespace tinyllama
