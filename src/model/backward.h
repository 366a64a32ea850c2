// Training's half of the model: the mirror of forward.cpp.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/training.h"
#include "model/llama.h"
#include "model/parameters.h"

namespace tinyllama {

// The loss and the gradients of a pass that has run up to its head (Forward::run(n_layers)) with
// activations that keep: construct, then call one of losses() and run() once. Arguments as in
// TrainingPass::run; everything given must outlive it.
class Backward {
 public:
  Backward(const Llama& model, const Batch& batch, Forward& forward, Activations& activations);

  // `losses` (rows), on the host.
  void losses(std::span<const int32_t> targets, std::span<float> losses);
  // Likewise, and adds to `gradients`. Uses up what was kept.
  void run(std::span<const int32_t> targets, double scale, Parameters& gradients,
           std::span<float> losses);

 private:
  // Without `gradients`, losses alone.
  void head(std::span<const int32_t> targets, double scale, const Parameters* gradients);
  void layer(int64_t index, const LayerParameters& gradients);
  void copy_losses(std::span<float> losses) const;

  const Llama& model_;
  const Batch& batch_;
  Forward& forward_;
  Activations& a_;
  Backend& backend_;
  TrainingOps& training_;
};

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

  // The sum of the losses alone: validation.
  double loss(const Llama& model, std::span<const int32_t> tokens,
              std::span<const int64_t> documents, std::span<const int32_t> targets);

  // Losses of the last call's rows, 0 where ignored.
  std::span<const float> losses() const { return losses_; }
  size_t bytes() const { return cache_.bytes() + activations_.bytes(); }

 private:
  void check(const Config& config, std::span<const int32_t> tokens,
             std::span<const int32_t> targets) const;
  // Segments over blocks of the cache, every row with logits.
  Batch batch_of(std::span<const int32_t> tokens, std::span<const int64_t> documents) const;

  KvCache cache_;
  Activations activations_;
  std::vector<int32_t> blocks_;  // 0, 1, ...: documents take them in order
  std::vector<float> losses_;
};

}  // namespace tinyllama
