// The machine's limits, measured by the program's own loops: what every speed is divided by.
#pragma once

#include <string>
#include <vector>

#include "base/parallel.h"
#include "tensor/tensor.h"

namespace tinyllama {

struct MachinePeaks {
  double read_gbps = 0;           // reading memory by ReadProbe
  double fp32_gflops = 0;         // fused multiply-adds
  double bf16_gflops = 0;         // BF16 products accumulated in FP32
  double int8_gops = 0;           // int8 products accumulated in int32
  double matrix_bf16_gflops = 0;  // BF16 products by matrix units (AMX); 0 where there are none
};

// Reads 512 MB of its own, prefetched, on huge pages where the system gives them: what a speed that
// memory bounds is compared with, in turns, since a shared machine has slow moments.
class ReadProbe {
 public:
  ReadProbe(ThreadPool& pool, const std::string& isa);
  size_t bytes() const { return memory_.size(); }
  // Reads `eighths` of the memory, going round; GB/s.
  double read(int eighths = 1);

 private:
  ThreadPool& pool_;
  uint64_t (*read_memory_)(const uint8_t* from, size_t bytes);
  Buffer memory_;
  int next_ = 0;
  std::vector<uint64_t> sums_;  // so that the reads happen
};

// Measures with all threads of `pool` on `isa` (empty: the best); each figure is the best of
// several runs of a few tens of milliseconds, since a shared machine has slow moments. Takes about
// a second and 512 MB.
MachinePeaks measure_machine(ThreadPool& pool, const std::string& isa = {});

}  // namespace tinyllama
