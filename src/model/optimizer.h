// The optimizer's step on all parameters.
#pragma once

#include "backend/training.h"
#include "model/parameters.h"

namespace tinyllama {

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

  // Updates `weights` with `gradients`, whose gradient_norm() is `norm` (finite); then clears
  // them. The
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
