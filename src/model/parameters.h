// The tensors of a Llama in FP32 and in rows as they are trained: master weights, gradients, an
// optimizer's moments. All of them have this one shape, so that one visitor serves them all.
#pragma once

#include <functional>
#include <vector>

#include "backend/backend.h"
#include "formats/checkpoint.h"
#include "formats/config.h"

namespace tinyllama {

struct LayerParameters {
  Tensor attention_norm;  // (1, hidden)
  Tensor qkv;             // (q_dim + 2 kv_dim, hidden)
  Tensor output;          // (hidden, q_dim)
  Tensor mlp_norm;        // (1, hidden)
  Tensor gate_up;         // (2 intermediate, hidden)
  Tensor down;            // (hidden, intermediate)
};

// Fields stand as in Weights. Tensors lie in backend memory, contiguous.
class Parameters {
 public:
  // Zeros.
  Parameters(Backend& backend, const Config& config);

  Tensor embed;  // (vocab, hidden)
  std::vector<LayerParameters> layers;
  Tensor norm;  // (1, hidden)
  Tensor head;  // (vocab, hidden); embed itself when the embeddings are tied

  const Config& config() const { return config_; }
  // The tensors of tensor_specs(), in that order: q_proj, k_proj and v_proj are rows of qkv.
  std::vector<Tensor> tensors() const;
  // Calls visit(spec, tensor) for each of them: under its Hugging Face name, with its shape.
  void for_each(const std::function<void(const TensorSpec&, Tensor)>& visit) const;
  // All of it as one row; what lies between tensors is zero and stays so.
  Tensor flat() const;

  // Copies the checkpoint's tensors, decoded to FP32. Throws Error when one is missing or has
  // another shape.
  void read(const Checkpoint& checkpoint);
  // A checkpoint of views into this memory, which must outlive it: what Llama is constructed from
  // and write_hf_folder() writes. For a backend whose memory the host can read.
  Checkpoint checkpoint() const;

 private:
  Backend& backend_;
  Config config_;
  Buffer memory_;
};

}  // namespace tinyllama
