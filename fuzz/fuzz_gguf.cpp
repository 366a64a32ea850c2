// GGUF: container, configuration, vocabulary, tensors.
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyllama;
  fuzz::one_input(data, size, [](std::span<const std::byte> bytes) {
    const Gguf file = parse_gguf(bytes, "fuzz.gguf");
    for (const auto& [name, tensor] : file.tensors) fuzz::touch(tensor.data);
    try {  // most inputs are no whole model; the vocabulary is read all the same
      vocab_of_gguf(file);
    } catch (const Error&) {
      fuzz::sink = fuzz::sink + 1;
    }
    fuzz::touch(checkpoint_of_gguf(file));
  });
  return 0;
}
