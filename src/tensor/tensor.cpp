#include "tensor/tensor.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <array>
#include <string>

#include "base/error.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

constexpr std::array<DTypeTraits, kDTypeCount> kTraits = {{
    {"f32", 1, 4, false, 0, "F32"},
    {"f16", 1, 2, false, 1, "F16"},
    {"bf16", 1, 2, false, 30, "BF16"},
    {"q4_0", kBlock, sizeof(BlockQ4_0), true, 2, ""},
    {"q8_0", kBlock, sizeof(BlockQ8_0), true, 8, ""},
    {"q4_k", kSuperBlock, sizeof(BlockQ4_K), true, 12, ""},
    {"q6_k", kSuperBlock, sizeof(BlockQ6_K), true, 14, ""},
}};

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

const DTypeTraits& traits(DType dtype) {
  return kTraits.at(static_cast<size_t>(dtype));
}

DType dtype_from_name(std::string_view name) {
  std::string known;
  for (size_t i = 0; i < kTraits.size(); i++) {
    if (kTraits[i].name == name) return static_cast<DType>(i);
    known += (i == 0 ? "" : ", ");
    known += kTraits[i].name;
  }
  fail(fmt::format("[type] unknown data type '{}': want one of {}", name, known));
}

size_t row_bytes(DType dtype, int64_t cols) {
  const DTypeTraits& t = traits(dtype);
  TL_CHECK(cols >= 0 && cols % t.block_size == 0);
  return static_cast<size_t>(cols / t.block_size) * static_cast<size_t>(t.block_bytes);
}

Buffer alloc_host(size_t bytes) {
  if (bytes == 0) return {};
  const size_t align = bytes >= kHugePage ? kHugePage : 4096;
  const size_t size = (bytes + align - 1) / align * align;
  const size_t reserved = size + (align > 4096 ? align : 0);
  void* raw = ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED)
    fail(fmt::format("[memory] cannot allocate {:.1f} MB: use a smaller context, type or model",
                     static_cast<double>(bytes) / 1e6));
  auto address = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = (address + align - 1) / align * align;
  if (align == kHugePage) ::madvise(reinterpret_cast<void*>(aligned), size, MADV_HUGEPAGE);
  return {reinterpret_cast<std::byte*>(aligned), bytes,
          [raw, reserved](std::byte*, size_t) { ::munmap(raw, reserved); }};
}

}  // namespace tinyllama
