// Unicode's Script property (UAX #24), as far as training a tokenizer asks for it: whether two
// characters are of one script.
#pragma once

#include <cstdint>

namespace tinyllama {

enum class Script : uint8_t {
  common = 0,     // punctuation, symbols, digits, spaces
  inherited = 1,  // combining marks: of whatever script the character before is
  latin = 2,
  han = 3,  // with Hiragana and Katakana, since Japanese words mix them
  // Other values are other scripts, one each.
};

// A code point that is not assigned counts as its neighbour below.
Script script_beyond_ascii(char32_t c);

inline Script script_of(char32_t c) {
  if (c >= 0x80) return script_beyond_ascii(c);
  return ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ? Script::latin : Script::common;
}

}  // namespace tinyllama
