// llama2.c: the first byte says whether the rest is a model or a tokenizer.
#include "formats/llama2c.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyllama;
  return fuzz::one_input(data, size, [](std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    if (bytes[0] == std::byte{'t'}) {
      parse_llama2c_vocab(bytes.subspan(1), "fuzz.bin");
    } else {
      Checkpoint checkpoint = parse_llama2c(bytes.subspan(1), "fuzz.bin");
      check_checkpoint(checkpoint);
      fuzz::touch(checkpoint);
    }
  });
}
