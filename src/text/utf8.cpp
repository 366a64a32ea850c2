// The one UTF-8 decoder of the project, and helpers over it. Every function takes any bytes.
#include "text/utf8.h"

#include <cstring>

namespace tinyllama {

namespace {

bool is_trail(unsigned char byte) {
  return (byte & 0xC0) == 0x80;
}

// How many bytes from the start of `text` are ASCII, counted eight at a time, so rounded down.
size_t ascii_words(std::string_view text) {
  size_t n = 0;
  for (; n + 8 <= text.size(); n += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + n, 8);
    if ((word & 0x8080808080808080ull) != 0) break;
  }
  return n;
}

}  // namespace

Utf8Char decode_utf8_beyond_ascii(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  const int length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < static_cast<size_t>(length)) return {};
  char32_t code = lead & (0x7F >> length);
  for (int i = 1; i < length; ++i) {
    if (!is_trail(byte(static_cast<size_t>(i)))) return {};
    code = code << 6 | (byte(static_cast<size_t>(i)) & 0x3F);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  if (overlong || surrogate || code > 0x10FFFF) return {};
  return {code, length, true};
}

void append_utf8(std::string& to, char32_t code) {
  if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) code = 0xFFFD;
  if (code < 0x80) {
    to += static_cast<char>(code);
  } else if (code < 0x800) {
    to += static_cast<char>(0xC0 | code >> 6);
    to += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    to += static_cast<char>(0xE0 | code >> 12);
    to += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    to += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    to += static_cast<char>(0xF0 | code >> 18);
    to += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    to += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    to += static_cast<char>(0x80 | (code & 0x3F));
  }
}

size_t valid_utf8_prefix(std::string_view text) {
  size_t n = 0;
  while (n < text.size()) {
    n += ascii_words(text.substr(n));
    if (n == text.size()) break;
    const Utf8Char c = decode_utf8(text.substr(n));
    if (!c.valid) break;
    n += static_cast<size_t>(c.length);
  }
  return n;
}

std::string to_valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  while (!text.empty()) {
    const size_t n = valid_utf8_prefix(text);
    valid.append(text.substr(0, n));
    text.remove_prefix(n);
    if (text.empty()) break;
    valid.append(kReplacementUtf8);
    text.remove_prefix(1);
  }
  return valid;
}

bool is_utf8_prefix(std::string_view text) {
  if (text.empty() || text.size() > 3) return false;
  // Of all completions, those with the extreme trail bytes are valid if any is.
  for (const char filler : {'\x80', '\xBF'}) {
    for (size_t length = text.size() + 1; length <= 4; ++length) {
      std::string completed(text);
      completed.resize(length, filler);
      const Utf8Char c = decode_utf8(completed);
      if (c.valid && static_cast<size_t>(c.length) == length) return true;
    }
  }
  return false;
}

size_t utf8_length(std::string_view text) {
  size_t n = 0;
  while (!text.empty()) {
    text.remove_prefix(static_cast<size_t>(decode_utf8(text).length));
    ++n;
  }
  return n;
}

}  // namespace tinyllama
