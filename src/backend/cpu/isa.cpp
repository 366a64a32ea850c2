#include "backend/cpu/isa.h"

#include <fmt/format.h>

#include <vector>

#include "backend/backend.h"
#include "base/cpu_info.h"
#include "base/error.h"

namespace tinyllama {
namespace {

struct IsaRow {
  const cpu::Kernels* kernels;
  bool supported;
};

std::vector<IsaRow> isa_rows() {
  [[maybe_unused]] const CpuInfo info = cpu_info();
  return {
#ifdef TINYLLAMA_HAS_amx
      {&cpu::kernels_amx, info.avx512 && info.avx512_bf16 && info.amx},
#endif
#ifdef TINYLLAMA_HAS_avx512
      {&cpu::kernels_avx512, info.avx512 && info.avx512_bf16},
#endif
#ifdef TINYLLAMA_HAS_avx2
      {&cpu::kernels_avx2, info.avx2},
#endif
      {&cpu::kernels_scalar, true},
  };
}

}  // namespace

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const IsaRow& row : isa_rows())
    if (row.supported) names.emplace_back(row.kernels->name);
  return names;
}

const cpu::Kernels& cpu::kernels_for(const std::string& isa) {
  std::string usable;
  for (const IsaRow& row : isa_rows()) {
    if (!row.supported) continue;
    if (isa.empty() || isa == row.kernels->name) return *row.kernels;
    usable += (usable.empty() ? "" : ", ") + std::string(row.kernels->name);
  }
  fail(fmt::format(
      "[isa] '{}' is not an instruction set this program has for this processor: want one of {}",
      isa, usable));
}

}  // namespace tinyllama
