// Small random models and checkpoints that live in memory, for tests that need no files.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "formats/checkpoint.h"
#include "reference.h"
#include "tensor/quant.h"

namespace tinyllama::testing {

struct TinyShape {
  int64_t hidden = 32, intermediate = 48, n_layers = 2, n_heads = 4, n_kv_heads = 2, head_dim = 8,
          vocab = 50, context = 256;
  bool tied = false;
};

inline Config tiny_config(const TinyShape& shape) {
  Config c;
  c.hidden = shape.hidden;
  c.intermediate = shape.intermediate;
  c.n_layers = shape.n_layers;
  c.n_heads = shape.n_heads;
  c.n_kv_heads = shape.n_kv_heads;
  c.head_dim = shape.head_dim;
  c.vocab_size = shape.vocab;
  c.context = shape.context;
  c.tied_embeddings = shape.tied;
  return c;
}

// Uniform in (-1, 1); a function of the three keys.
inline float random_float(uint64_t seed, uint64_t stream, uint64_t i) {
  return static_cast<float>(2 * uniform_open(hash_key(seed, stream, i)) - 1);
}

inline std::vector<float> random_floats(size_t n, uint64_t seed, double magnitude = 1) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; i++) {
    values[i] = static_cast<float>(magnitude * random_float(seed, 0, i));
  }
  return values;
}

inline std::vector<int32_t> random_tokens(int64_t n, int64_t vocab, uint64_t seed) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (size_t i = 0; i < tokens.size(); i++) {
    tokens[i] = static_cast<int32_t>(hash_key(seed, i) % static_cast<uint64_t>(vocab));
  }
  return tokens;
}

// Matrices of unit gain (variance 1 / cols), norms near 1: activations neither grow nor fade.
inline reference::Model random_model(const Config& config, uint64_t seed) {
  reference::Model model{config, {}};
  for (const TensorSpec& spec : tensor_specs(config)) {
    const bool is_embedding = spec.name == "model.embed_tokens.weight";
    const double gain = is_embedding ? 1 : std::sqrt(3.0 / static_cast<double>(spec.cols));
    const uint64_t stream = fnv1a64(spec.name);
    std::vector<float>& w = model.tensors[spec.name];
    w.resize(static_cast<size_t>(spec.rows * spec.cols));
    for (size_t i = 0; i < w.size(); i++) {
      const double u = random_float(seed, stream, i);
      w[i] = static_cast<float>(spec.is_norm ? 1 + 0.25 * u : gain * u);
    }
  }
  return model;
}

// A checkpoint of `model` with matrices encoded as `dtype` says (norms stay FP32), in memory that
// it owns; with `interleaved`, query and key rows in GGUF's order.
class MemoryCheckpoint {
 public:
  MemoryCheckpoint(const reference::Model& model, DType dtype, bool interleaved = false)
      : MemoryCheckpoint(
            model, [dtype](const TensorSpec&) { return dtype; }, interleaved) {}

  MemoryCheckpoint(const reference::Model& model, const DTypeChoice& dtype_of,
                   bool interleaved = false) {
    checkpoint_.path = "memory";
    checkpoint_.config = model.config;
    for (const TensorSpec& spec : tensor_specs(model.config)) {
      const DType type = spec.is_norm ? DType::f32 : dtype_of(spec);
      const int64_t dim = interleaved ? spec.rotary_dim : 0;
      const size_t bytes_per_row = row_bytes(type, spec.cols);
      auto& bytes = *storage_.emplace_back(
          std::make_unique<std::vector<std::byte>>(static_cast<size_t>(spec.rows) * bytes_per_row));
      for (int64_t r = 0; r < spec.rows; r++) {
        const int64_t stored = dim == 0 ? r : interleaved_row(r, dim);
        encode_row(type, model[spec.name].data() + r * spec.cols,
                   bytes.data() + static_cast<size_t>(stored) * bytes_per_row, spec.cols);
      }
      checkpoint_.tensors[spec.name] = {spec.name,
                                        TensorView(bytes.data(), type, spec.rows, spec.cols), dim};
    }
  }

  const Checkpoint& operator*() const { return checkpoint_; }

 private:
  Checkpoint checkpoint_;
  std::vector<std::unique_ptr<std::vector<std::byte>>> storage_;
};

// The checkpoint's tensors as plain floats in Hugging Face's row order: what an engine that reads
// it computes with.
inline reference::Model dequantized(const Checkpoint& checkpoint) {
  reference::Model model{checkpoint.config, {}};
  for (const TensorSpec& spec : tensor_specs(checkpoint.config)) {
    const NamedTensor& tensor = checkpoint.tensors.at(spec.name);
    std::vector<float>& w = model.tensors[spec.name];
    w.resize(static_cast<size_t>(spec.rows * spec.cols));
    for (int64_t r = 0; r < spec.rows; r++) {
      decode_row(tensor.view.dtype, tensor.row(r), w.data() + r * spec.cols, spec.cols);
    }
  }
  return model;
}

}  // namespace tinyllama::testing
