#include "base/cpu_info.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <thread>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tinyllama {
namespace {

// The matrix units' registers are large: Linux (5.16 on) saves them only for processes that ask.
[[maybe_unused]] bool may_use_amx() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023,
                kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

CpuInfo cpu_info() {
  CpuInfo info;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) info.model_name = line.substr(colon + 2);
    break;
  }
#if defined(__x86_64__)
  // __builtin_cpu_supports also checks that the operating system saves the wide registers.
  info.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (info.avx2 && __get_cpuid(1, &a, &b, &c, &d)) info.avx2 = (c & (1u << 29)) != 0;  // F16C
  info.avx512 = info.avx2 && __builtin_cpu_supports("avx512f") &&
                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    info.avx_vnni = info.avx2 && (a & (1u << 4)) != 0;
    info.avx512_bf16 = info.avx512 && (a & (1u << 5)) != 0;
  }
  constexpr unsigned kAmx = 1u << 22 | 1u << 24 | 1u << 25;  // BF16, tiles, int8
  if (info.avx512 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAmx) == kAmx) {
    info.amx = may_use_amx();
  }
#elif defined(__aarch64__)
  info.neon = true;
#endif
  return info;
}

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace tinyllama
