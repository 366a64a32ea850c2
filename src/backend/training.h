// The operations that training needs beside those of backend.h, which run its forward pass too.
// Gradients and optimizer states are FP32 matrices in backend memory. Results do not depend on the
// number of threads: each element is summed by one thread, in one order.
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"

namespace tinyllama {

// A row whose target this is has no loss and no gradient.
inline constexpr int32_t kIgnoredTarget = -100;

// One step of AdamW (Loshchilov and Hutter 2019) on one tensor, as torch.optim.AdamW has it.
struct AdamWStep {
  double lr = 0;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0;    // decoupled: w shrinks by lr * weight_decay
  double gradient_scale = 1;  // multiplies the gradient first: clipping
  int64_t step = 1;           // from 1, for bias correction
};

class TrainingOps {
 public:
  virtual ~TrainingOps() = default;

  // y = x W^T with weights of type f32 or bf16. Where they are bf16, so are both sides of these
  // products, rounded, and sums are FP32.
  // dx = dy W; dy (n, rows), dx (n, cols).
  virtual void linear_input(const Packed& w, TensorView dy, Tensor dx) = 0;
  // dw += dy^T x; dy (n, rows), x (n, cols), dw (rows, cols).
  virtual void linear_weight(const Packed& w, TensorView dy, TensorView x, Tensor dw) = 0;
  // y = rms_norm(x, w): dx += and dw += their parts of dy; all (rows, d) but w, dw (1, d).
  virtual void rms_norm_backward(TensorView x, TensorView w, double eps, TensorView dy, Tensor dx,
                                 Tensor dw) = 0;
  // y = swiglu(gate_up): gate_up (rows, 2 d) becomes its own gradient; dy (rows, d).
  virtual void swiglu_backward(TensorView dy, Tensor gate_up) = 0;
  // y, softmax = attention(qkv) of backend.h, every segment with past 0: dqkv = the gradient before
  // rope_store() rotated q and k. qkv, dqkv (rows, (n_heads + 2 n_kv_heads) * head_dim); y, dy
  // (rows, n_heads * head_dim). Probabilities are computed again, block by block, from the kept
  // softmax sums (Dao et al. 2022). Keys and values are those of qkv: exact for a cache of FP32,
  // else the cache's rounding is taken for the identity.
  virtual void attention_backward(TensorView qkv, int64_t n_heads, const KvShape& shape,
                                  TensorView y, TensorView softmax, TensorView dy, Tensor dqkv) = 0;
  // y = embed(table): dtable[tokens[r]] += dy[r]; dy (rows, d), dtable (vocab, d).
  virtual void embed_backward(TensorView dy, Tensor dtable) = 0;
  // For each row: losses[r] = -log softmax(logits[r])[targets[r]], and logits[r] becomes `scale`
  // times that loss's gradient; zeros where the target is kIgnoredTarget. logits (n, vocab), losses
  // (1, n); targets in [0, vocab) or kIgnoredTarget.
  virtual void cross_entropy(Tensor logits, std::span<const int32_t> targets, double scale,
                             Tensor losses) = 0;

  // Updates w and the moments m and v, all (rows, cols).
  virtual void adamw(const AdamWStep& step, TensorView gradient, Tensor w, Tensor m, Tensor v) = 0;
  // The sum of x's squares. The one operation that returns a value to the host: the caller decides
  // by it.
  virtual double sum_of_squares(TensorView x) = 0;
  // x = 0.
  virtual void clear(Tensor x) = 0;
};

}  // namespace tinyllama
