// The model: packed weights and the one forward pass that training, evaluation and serving share.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "formats/checkpoint.h"
#include "formats/config.h"
#include "model/kv_cache.h"
#include "model/rope.h"

namespace tinyllama {

struct LayerWeights {
  TensorView attention_norm;        // (1, hidden) FP32
  std::unique_ptr<Packed> qkv;      // (q_dim + 2 kv_dim, hidden)
  std::unique_ptr<Packed> output;   // (hidden, q_dim)
  TensorView mlp_norm;              // (1, hidden) FP32
  std::unique_ptr<Packed> gate_up;  // (2 intermediate, hidden)
  std::unique_ptr<Packed> down;     // (hidden, intermediate)
};

struct Weights {
  TensorView embed;  // (vocab, hidden), as stored
  std::vector<LayerWeights> layers;
  TensorView norm;               // (1, hidden) FP32
  std::unique_ptr<Packed> head;  // (vocab, hidden)
  Buffer norms;                  // owns all norm vectors
  Buffer converted_embed;        // owns embed, when it was converted
  DType dtype = DType::f32;      // of the first layer's query projection: "the model's type"
  size_t bytes = 0;              // that decoding one token reads
};

class Llama {
 public:
  // Packs the checkpoint's tensors for `backend`; pages of the mapped files that were packed are
  // dropped. `progress` counts bytes. The embedding is read in place, so the model keeps the file
  // it lies in; an embedding in other memory must outlive it. With `as`, FP32 tensors are
  // converted to that type first (bf16, for training with FP32 master weights): the model is then,
  // bit for bit, that of a file written in that type.
  Llama(Backend& backend, const Checkpoint& checkpoint, const Progress& progress = nullptr,
        std::optional<DType> as = {});

  // Reads weights that changed (a step of training) into the memory they have; shapes and types are
  // those of the checkpoint the model was made of. The embedding is read in place from now on too.
  void reload(const Checkpoint& checkpoint);

  const Config& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  // The model's own frequencies, for sequences no longer than its context.
  const RopeFrequencies& rope() const { return rope_; }
  Backend& backend() const { return backend_; }
  // The cache type that loses nothing against the weights' own: their float type, F16 for quantized
  // ones.
  DType default_kv_type() const;

 private:
  void load(const Checkpoint& checkpoint, const Progress& progress);

  Backend& backend_;
  Config config_;
  RopeFrequencies rope_;
  std::optional<DType> as_;
  Weights weights_;
  std::shared_ptr<const void> embed_owner_;  // what the embedding's bytes lie in
};

// What a forward pass keeps for backward(): nothing (inference), each layer's input (its other
// activations are then computed a second time), or everything.
enum class Keep { nothing, inputs, everything };

// What one layer computes. Without Keep::everything, layers share all but x.
struct LayerActivations {
  Tensor x;         // (rows, hidden) the residual stream before the layer; with Keep::nothing null
  Tensor qkv;       // (rows, q_dim + 2 kv_dim), rotated
  Tensor softmax;   // (rows, 2 n_heads) as Backend::attention has it; with Keep::nothing null
  Tensor attended;  // (rows, q_dim)
  Tensor middle;    // (rows, hidden) x between attention and MLP; with Keep::nothing null
  Tensor gate_up;   // (rows, 2 intermediate)
};

// Buffers of one forward pass, sized for up to `max_rows` rows and `max_logit_rows` rows of logits.
// To keep for backward(), all rows must have logits; they are then made max_logit_rows at a time.
class Activations {
 public:
  Activations(Backend& backend, const Config& config, int64_t max_rows, int64_t max_logit_rows,
              Keep keep = Keep::nothing);

  int64_t max_rows() const { return max_rows_; }
  int64_t max_logit_rows() const { return max_logit_rows_; }
  Keep keep() const { return keep_; }
  size_t bytes() const { return memory_.size(); }
  // (logit_rows, vocab) of the last finished forward pass, in backend memory.
  Tensor logits(int64_t n) const;

 private:
  friend class Forward;
  friend class Backward;
  Buffer memory_;
  int64_t max_rows_, max_logit_rows_;
  Keep keep_;
  Tensor x_;       // (rows, hidden) the residual stream
  Tensor normed_;  // (rows, max(hidden, intermediate, q_dim)) input of the next product
  Tensor last_;    // (logit_rows, hidden) rows with logits, when not all have them
  Tensor logits_;  // (max_logit_rows, vocab)
  std::vector<LayerActivations> layers_;  // (n_layers)
  std::vector<float> rope_;               // (rows, head_dim)
  // When something is kept: gradients.
  Tensor dx_;      // (rows, hidden) of the residual stream
  Tensor dqkv_;    // (rows, q_dim + 2 kv_dim)
  Tensor losses_;  // (1, rows)
};

// One forward pass that can pause between layers: construct, run(k) until done(). The block tables
// in `batch` must cover every position written (KvSequence::reserve), and the caller advances the
// sequences. Everything given must outlive the pass. Throws Error for a token outside the
// vocabulary.
class Forward {
 public:
  Forward(const Llama& model, const Batch& batch, const KvCache& cache, Activations& activations);

  bool done() const { return next_layer_ > model_.config().n_layers; }
  // Runs up to `n` further steps; there are n_layers + 1 (the last is final norm and head).
  void run(int64_t n);
  // Computes a layer again from its kept input.
  void repeat(int64_t index);

 private:
  void embed();
  void layer(int64_t index);
  void head();
  void keep(const Tensor& x, const Tensor& to);
  int64_t n_logits() const { return static_cast<int64_t>(batch_.logit_rows.size()); }
  bool all_rows() const { return n_logits() == batch_.rows(); }

  const Llama& model_;
  const Batch& batch_;
  const KvCache& cache_;
  Activations& a_;
  int64_t next_layer_ = 0;
};

// The whole pass; logits are then at activations.logits(batch.logit_rows.size()).
void forward(const Llama& model, const Batch& batch, const KvCache& cache,
             Activations& activations);

}  // namespace tinyllama
