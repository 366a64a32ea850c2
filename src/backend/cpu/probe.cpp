#include "backend/cpu/probe.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "backend/cpu/isa.h"
#include "tensor/tensor.h"

namespace tinyllama {
namespace {

constexpr size_t kReadBytes = size_t{512} << 20;
constexpr int kRuns = 5;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Best rate, in units of 1e9 a second, of kRuns runs of `work` on all threads; work returns its
// units.
template <class Work>
double best_rate(ThreadPool& pool, const Work& work) {
  double best = 0;
  std::vector<double> units(static_cast<size_t>(pool.size()));
  for (int run = 0; run < kRuns; run++) {
    const double start = seconds();
    pool.run([&](int thread) { units[static_cast<size_t>(thread)] = work(thread); });
    double total = 0;
    for (const double u : units) total += u;
    best = std::max(best, total / (seconds() - start) / 1e9);
  }
  return best;
}

}  // namespace

MachinePeaks measure_machine(ThreadPool& pool, const std::string& isa) {
  const cpu::Kernels& k = cpu::kernels_for(isa);
  MachinePeaks peaks;
  constexpr int64_t kRounds = 2'000'000;
  peaks.fp32_gflops = best_rate(pool, [&](int) { return k.peak_fp32(kRounds); });
  peaks.bf16_gflops = best_rate(pool, [&](int) { return k.peak_bf16(kRounds); });
  peaks.int8_gops = best_rate(pool, [&](int) { return k.peak_int8(kRounds); });

  const Buffer memory = alloc_host(kReadBytes);
  const size_t part = kReadBytes / static_cast<size_t>(pool.size()) / 4096 * 4096;
  std::vector<uint64_t> sums(static_cast<size_t>(pool.size()));
  pool.run([&](int thread) {
    std::memset(memory.data() + part * static_cast<size_t>(thread), 1, part);
  });
  peaks.read_gbps = best_rate(pool, [&](int thread) {
    const auto at = static_cast<size_t>(thread);
    sums[at] += k.read_memory(reinterpret_cast<const uint8_t*>(memory.data()) + part * at, part);
    return static_cast<double>(part);
  });
  return peaks;
}

}  // namespace tinyllama
