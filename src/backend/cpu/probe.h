// The machine's limits, measured by the program's own loops: what every speed is divided by.
#pragma once

#include <string>

#include "base/parallel.h"

namespace tinyllama {

struct MachinePeaks {
  double read_gbps = 0;    // reading memory, prefetched, on huge pages where the system gives them
  double fp32_gflops = 0;  // fused multiply-adds
  double bf16_gflops = 0;  // BF16 products accumulated in FP32
  double int8_gops = 0;    // int8 products accumulated in int32
};

// Measures with all threads of `pool` on `isa` (empty: the best); each figure is the best of
// several runs of a few tens of milliseconds, since a shared machine has slow moments. Takes about
// a second and 512 MB.
MachinePeaks measure_machine(ThreadPool& pool, const std::string& isa = {});

}  // namespace tinyllama
