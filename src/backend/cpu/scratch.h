// Memory that operations reuse.
#pragma once

#include <cstddef>

#include "tensor/tensor.h"

namespace tinyllama::cpu {

// Memory that grows to the largest request and stays.
class Scratch {
 public:
  std::byte* get(size_t bytes) {
    if (bytes > buffer_.size()) buffer_ = alloc_host(bytes + bytes / 4);
    return buffer_.data();
  }
  const std::byte* data() const { return buffer_.data(); }
  float* floats(int64_t n) {
    return reinterpret_cast<float*>(get(static_cast<size_t>(n) * sizeof(float)));
  }

 private:
  Buffer buffer_;
};

}  // namespace tinyllama::cpu
