// safetensors: header and data.
#include "formats/safetensors.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyllama;
  return fuzz::one_input(data, size, [](std::span<const std::byte> bytes) {
    const Safetensors file = parse_safetensors(bytes, "fuzz.safetensors");
    for (const auto& [name, entry] : file.entries) {
      fuzz::touch(entry.data);
      if (entry.float_type()) fuzz::sink = fuzz::sink + entry.to_f32().size();
    }
  });
}
