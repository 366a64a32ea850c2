// The products of training over threads, in FP32 and in BF16.
#pragma once

#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/training_kernels.h"
#include "base/parallel.h"
#include "tensor/tensor.h"

namespace tinyllama::cpu {

class Products {
 public:
  Products(const Kernels& kernels, ThreadPool& pool)
      : base_(kernels),
        k_(*kernels.training),
        pool_(pool),
        scratch_(static_cast<size_t>(pool.size())) {}

  // c (m, n) as `whole` says, its c and scratch left out. How it is cut changes no bit.
  void fp32(const ProductJob& whole, Tensor c);
  // The same with both sides rounded to BF16; packed weights are BF16. Sums run over kDepth of k at
  // a time.
  void bf16(const ProductJob& whole, Tensor c);

 private:
  void pack_bf16(const ProductJob& whole, int64_t first, int64_t depth);

  const Kernels& base_;
  const TrainingKernels& k_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;  // per thread
  Scratch columns_, tiles_;       // BF16: a as column groups, b as tiles
};

}  // namespace tinyllama::cpu
