#include "model/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"

namespace tinyllama {

double gradient_norm(Backend& backend, const Parameters& gradients) {
  return std::sqrt(backend.training().sum_of_squares(gradients.flat()));
}

Optimizer::Optimizer(Backend& backend, const Config& config, const AdamW& options)
    : backend_(backend), options_(options), m_(backend, config), v_(backend, config) {}

void Optimizer::step(Parameters& weights, Parameters& gradients, double norm, double lr) {
  TL_CHECK(std::isfinite(norm));
  AdamWStep step;
  step.lr = lr;
  step.beta1 = options_.beta1;
  step.beta2 = options_.beta2;
  step.eps = options_.eps;
  step.step = ++steps_;
  // As torch.nn.utils.clip_grad_norm_ has it.
  if (options_.clip > 0) step.gradient_scale = std::min(1.0, options_.clip / (norm + 1e-6));

  TrainingOps& training = backend_.training();
  const std::vector<TensorSpec> specs = tensor_specs(weights.config());
  const std::vector<Tensor> w = weights.tensors(), g = gradients.tensors();
  const std::vector<Tensor> m = m_.tensors(), v = v_.tensors();
  for (size_t i = 0; i < specs.size(); i++) {
    const bool decays = !specs[i].is_norm || options_.decay_norms;
    step.weight_decay = decays ? options_.weight_decay : 0;
    training.adamw(step, g[i], w[i], m[i], v[i]);
  }
  training.clear(gradients.flat());
}

}  // namespace tinyllama
