// The operation contract: what a device must be able to do for a Llama to run on it. Everything
// above does not know which hardware it is on; everything below does not know what a Llama is.
// Activations are FP32 matrices (rows, features); no operation returns a value to the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "backend/batch.h"
#include "tensor/tensor.h"

namespace tinyllama {

// A weight matrix in the backend's own layout.
class Packed {
 public:
  virtual ~Packed() = default;
  int64_t rows = 0, cols = 0;  // of the joined matrix
  size_t bytes = 0;            // that one pass over it reads
};

// One of the matrices that pack() joins along rows. `interleaved_dim` is head_dim when the rows are
// in GGUF's interleaved rotary order (they are put into half-rotation order), else 0.
struct PackPart {
  TensorView w;
  int64_t interleaved_dim = 0;
  std::optional<DType> as = {};  // FP32 weights in another type
};

// The shape of one layer's cache. dtype: f32, f16, bf16 or q8_0 (one scale for 32 features of a
// position); attention sees keys and values only as rounded to it.
struct KvShape {
  int64_t n_kv_heads = 0, head_dim = 0;
  DType dtype = DType::f16;
};

// One layer of the paged cache: block b starts at data + b * block_bytes, in the backend's own
// layout.
struct KvLayer {
  std::byte* data = nullptr;
  size_t block_bytes = 0;
  KvShape shape;
};

class TrainingOps;  // training.h

class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu/avx512" and so on; part of what a result's bits are a function of.
  virtual std::string name() const = 0;

  // Zeroed memory that the operations below can read and write.
  virtual Buffer alloc(size_t bytes) = 0;
  virtual void copy_to_host(const std::byte* from, std::byte* to, size_t bytes) = 0;
  virtual void copy_from_host(const std::byte* from, std::byte* to, size_t bytes) = 0;
  virtual void copy(const std::byte* from, std::byte* to, size_t bytes) = 0;

  // Joins `parts` (same cols, any dtypes) along rows into the layout that linear() wants. Output
  // row order is that of the parts.
  virtual std::unique_ptr<Packed> pack(std::span<const PackPart> parts) = 0;
  // Packs weights of the same shapes and types again, into the memory that `packed` has.
  virtual void repack(std::span<const PackPart> parts, Packed& packed) = 0;
  virtual size_t kv_block_bytes(const KvShape& shape) const = 0;

  // Announces the step: later operations read rows, segments, tokens, block tables from it. `rope`
  // is (rows, head_dim): cos of the row's head_dim / 2 angles, then their sin. Host memory; both
  // stay alive until the step's last operation has returned.
  virtual void begin(const Batch& batch, std::span<const float> rope) = 0;

  // y[r] = table[tokens[r]]; table (vocab, d) in any dtype, y (rows, d).
  virtual void embed(TensorView table, Tensor y) = 0;
  // y[r] = w * x[r] / sqrt(mean(x[r]^2) + eps); w (1, d). Zhang and Sennrich 2019.
  virtual void rms_norm(TensorView x, TensorView w, double eps, Tensor y) = 0;
  // y = x W^T, or y += x W^T when `accumulate`; x (n, cols), y (n, rows). Each element of y is
  // reduced over k in one order that depends neither on n nor on threads.
  virtual void linear(const Packed& w, TensorView x, Tensor y, bool accumulate) = 0;
  // qkv (rows, (n_heads + 2 n_kv_heads) * head_dim): rotates q in place and k (half-rotation; Su et
  // al. 2021), then writes k and v into the cache at each row's position, rounded to the cache's
  // type.
  virtual void rope_store(Tensor qkv, int64_t n_heads, const KvLayer& kv) = 0;
  // y[r] = softmax(q k^T / sqrt(head_dim)) v over positions 0..position(r) of the row's sequence,
  // read from the cache only. qkv as above, y (rows, n_heads * head_dim). The reduction tree
  // depends on the position alone: blocks of kKvBlock keys, a running softmax within splits of 512,
  // splits merged left to right. With `softmax` (rows, 2 n_heads) given, each head's largest score
  // and its sum of exp(score - largest) are written to it: the largest of all heads, then the sums.
  virtual void attention(TensorView qkv, int64_t n_heads, const KvLayer& kv, Tensor y,
                         Tensor softmax) = 0;
  // gate_up (rows, 2 d): y = silu(gate) * up, y (rows, d). Shazeer 2020.
  virtual void swiglu(TensorView gate_up, Tensor y) = 0;
  // y[i] = x[rows[i]] with rows = the batch's logit_rows.
  virtual void gather_logit_rows(TensorView x, Tensor y) = 0;
  // Moves `n` cached positions of one sequence from `from` to `to` (to < from), turning the keys by
  // `rope` = cos, sin of head_dim / 2 angles: what shifting a full context needs.
  virtual void move_kv(const KvLayer& kv, std::span<const int32_t> blocks, int64_t from, int64_t to,
                       int64_t n, std::span<const float> rope) = 0;

  // What training needs besides; throws Error on a device that only runs models.
  virtual TrainingOps& training() = 0;

  // Fused forms; the defaults compose the plain ones through `scratch`, which is as wide as w's
  // input.
  virtual void norm_linear(TensorView x, TensorView norm, double eps, const Packed& w,
                           Tensor scratch, Tensor y) {
    rms_norm(x, norm, eps, scratch);
    linear(w, scratch, y, false);
  }
  virtual void swiglu_linear(TensorView gate_up, const Packed& w, Tensor scratch, Tensor y,
                             bool accumulate) {
    swiglu(gate_up, scratch);
    linear(w, scratch, y, accumulate);
  }
};

struct CpuOptions {
  int threads = 0;  // 0: one per core
  std::string isa;  // "amx", "avx512", "avx2", "scalar"; empty: the best this processor has
};

// Throws Error when the ISA is unknown or the processor lacks it, naming those it has.
std::unique_ptr<Backend> make_cpu(const CpuOptions& options);
// The ISAs compiled in that this processor can run, best first.
std::vector<std::string> cpu_isas();

}  // namespace tinyllama
