// What the processor can do, asked once at start.
#pragma once

#include <string>

namespace tinyllama {

struct CpuInfo {
  std::string model_name;  // empty when the system does not tell
  bool avx2 = false;       // AVX2, FMA and F16C, usable (the system saves their registers)
  bool avx_vnni = false;   // the 256-bit VEX form of vpdpbusd
  bool avx512 = false;     // AVX-512 F, BW, VL, DQ with VNNI
  bool avx512_bf16 = false;
  bool amx = false;  // matrix units for BF16 and int8, with the system's leave to use them
  bool neon = false;
};

CpuInfo cpu_info();

// Cores this process may run on (its affinity mask), at least 1.
int available_cores();

}  // namespace tinyllama
