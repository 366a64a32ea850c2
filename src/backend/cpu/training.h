// The operations of training on the CPU: threads and tiling around the kernels of training.
#pragma once

#include <memory>
#include <span>

#include "backend/cpu/kernels.h"
#include "backend/training.h"
#include "base/parallel.h"

namespace tinyllama::cpu {

// All given must outlive it; `batch` and `rope` are what Backend::begin() announced last.
std::unique_ptr<TrainingOps> make_training(const Kernels& kernels, ThreadPool& pool,
                                           const Batch* const& batch,
                                           const std::span<const float>& rope);

}  // namespace tinyllama::cpu
