// UTF-8 as the tokenizer needs it: decoding that never fails, and validation. Strict in the sense
// of Unicode's table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tinyllama {

inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Char {
  char32_t code = 0xFFFD;
  int length = 1;  // bytes consumed; 1 when invalid
  bool valid = false;
};

// For the first character of `text` when it is not ASCII.
Utf8Char decode_utf8_beyond_ascii(std::string_view text);

// The first character of `text`, which is not empty.
inline Utf8Char decode_utf8(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text.front());
  return lead < 0x80 ? Utf8Char{lead, 1, true} : decode_utf8_beyond_ascii(text);
}

// Appends one code point; surrogates and values above U+10FFFF become U+FFFD.
void append_utf8(std::string& to, char32_t code);

// The length of the longest valid prefix, in bytes; text.size() when all of it is valid.
size_t valid_utf8_prefix(std::string_view text);
inline bool is_valid_utf8(std::string_view text) {
  return valid_utf8_prefix(text) == text.size();
}

// A copy with each byte that belongs to no valid character replaced by U+FFFD.
std::string to_valid_utf8(std::string_view text);

// Whether more bytes could make `text` (1 to 3 bytes) one valid character: it is a proper prefix of
// one.
bool is_utf8_prefix(std::string_view text);

// Characters in `text`; each invalid byte counts as one.
size_t utf8_length(std::string_view text);

}  // namespace tinyllama
