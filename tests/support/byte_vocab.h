// Where every vocabulary of the tests begins.
#pragma once

#include <cstdio>

#include "text/vocab.h"

namespace tinyllama::testing {

// <unk>, <s>, </s> and the 256 bytes: ids 0 to 258.
inline Vocab byte_vocab() {
  Vocab vocab;
  vocab.pieces = {{"<unk>", 0, PieceType::unknown},
                  {"<s>", 0, PieceType::control},
                  {"</s>", 0, PieceType::control}};
  for (int byte = 0; byte < 256; byte++) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    vocab.pieces.push_back({name, 0, PieceType::byte});
  }
  vocab.unk = 0, vocab.bos = 1, vocab.eos = 2;
  return vocab;
}

// 3 control pieces, 256 bytes, and the letters: enough to tokenize anything.
inline Vocab letters_vocab() {
  Vocab vocab = byte_vocab();
  vocab.pieces.push_back({"\xE2\x96\x81", -1, PieceType::normal});
  for (char c = 'a'; c <= 'z'; c++)
    vocab.pieces.push_back(
        {std::string(1, c), -2.0F - static_cast<float>(c - 'a'), PieceType::normal});
  return vocab;
}

}  // namespace tinyllama::testing
