// The JSON files of a Hugging Face folder; the first byte says which. Tokenizers that can be read
// are written and read again.
#include <string_view>

#include "formats/byte_reader.h"
#include "formats/hf_config.h"
#include "formats/hf_tokenizer.h"
#include "fuzz.h"

namespace {

using namespace tinyllama;

Vocab small_vocab() {
  Vocab vocab;
  vocab.pieces = {{"<unk>", 0, PieceType::unknown},
                  {"<s>", 0, PieceType::control},
                  {"</s>", 0, PieceType::control},
                  {"a", 0, PieceType::normal}};
  vocab.unk = 0, vocab.bos = 1, vocab.eos = 2;
  return vocab;
}

void read_tokenizer(std::string_view text) {
  const Vocab vocab = parse_tokenizer_json(text, "tokenizer.json");
  const Vocab again = parse_tokenizer_json(make_tokenizer_json(vocab), "written.json");
  TL_CHECK(again.pieces.size() >= vocab.pieces.size() || vocab.pieces.back().text.empty());
  make_tokenizer_config(vocab, 2048);
  make_special_tokens_map(vocab);
}

void read(std::string_view text) {
  if (text.empty()) return;
  const char kind = text[0];
  text.remove_prefix(1);
  Vocab vocab = small_vocab();
  switch (kind) {
    case 'c': {
      const HfConfig config = parse_hf_config(text, "config.json");
      TL_CHECK(
          parse_hf_config(make_hf_config(config.config, nullptr, DType::f32), "written").config ==
          config.config);
      break;
    }
    case 't':
      read_tokenizer(text);
      break;
    case 'k':
      apply_tokenizer_config(vocab, text, "tokenizer_config.json");
      break;
    case 'j':
      apply_tokenizer_json_additions(vocab, text, "tokenizer.json");
      break;
    case 'a':
      apply_added_tokens(vocab, text, "added_tokens.json");
      break;
    case 'g':
      parse_generation_config(text, "generation_config.json");
      break;
    case 'i':
      parse_weight_index(text, "index.json");
      break;
    case 'r':
      parse_rope_scaling(text, "rope");
      break;
    default:
      break;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::one_input(data, size,
                         [](std::span<const std::byte> bytes) { read(as_text(bytes)); });
}
