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

ReadProbe::ReadProbe(ThreadPool& pool, const std::string& isa)
    : pool_(pool),
      read_memory_(cpu::kernels_for(isa).read_memory),
      memory_(alloc_host(kReadBytes)),
      sums_(static_cast<size_t>(pool.size())) {
  const size_t part = kReadBytes / sums_.size();
  pool.run([&](int thread) {
    std::memset(memory_.data() + part * static_cast<size_t>(thread), 1, part);
  });
}

double ReadProbe::read(int eighths) {
  double units = 0, time = 0;
  for (int i = 0; i < eighths; i++) {
    const size_t slice = kReadBytes / 8, part = slice / sums_.size() / 4096 * 4096;
    const auto* from =
        reinterpret_cast<const uint8_t*>(memory_.data()) + slice * static_cast<size_t>(next_);
    next_ = (next_ + 1) % 8;
    const double start = seconds();
    pool_.run([&](int thread) {
      const auto at = static_cast<size_t>(thread);
      sums_[at] += read_memory_(from + part * at, part);
    });
    time += seconds() - start;
    units += static_cast<double>(part * sums_.size());
  }
  return units / time / 1e9;
}

MachinePeaks measure_machine(ThreadPool& pool, const std::string& isa) {
  const cpu::Kernels& k = cpu::kernels_for(isa);
  MachinePeaks peaks;
  constexpr int64_t kRounds = 2'000'000;
  peaks.fp32_gflops = best_rate(pool, [&](int) { return k.peak_fp32(kRounds); });
  peaks.bf16_gflops = best_rate(pool, [&](int) { return k.peak_bf16(kRounds); });
  peaks.int8_gops = best_rate(pool, [&](int) { return k.peak_int8(kRounds); });
  if (k.peak_matrix != nullptr)
    peaks.matrix_bf16_gflops = best_rate(pool, [&](int) { return k.peak_matrix(kRounds); });
  ReadProbe probe(pool, isa);
  for (int run = 0; run < kRuns; run++) peaks.read_gbps = std::max(peaks.read_gbps, probe.read(8));
  return peaks;
}

}  // namespace tinyllama
