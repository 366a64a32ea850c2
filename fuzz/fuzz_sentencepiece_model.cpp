// tokenizer.model; what can be read must come back the same after writing.
#include "formats/sentencepiece_model.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyllama;
  return fuzz::one_input(data, size, [](std::span<const std::byte> bytes) {
    const Vocab vocab = parse_sentencepiece(bytes, "fuzz.model");
    const std::string written = make_sentencepiece(vocab);
    const Vocab again = parse_sentencepiece(std::as_bytes(std::span(written)), "written.model");
    TL_CHECK(again.pieces.size() == vocab.pieces.size() && again.bos == vocab.bos);
  });
}
