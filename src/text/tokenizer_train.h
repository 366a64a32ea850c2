// Byte-pair encoding learned from a corpus, as SentencePiece's trainer does it (model_type bpe with
// byte_fallback): Sennrich, Haddow, Birch 2016 over characters, each merge the commonest pair.
#pragma once

#include <cstdint>

#include "base/file.h"
#include "text/vocab.h"
#include "text/word_counts.h"

namespace tinyllama {

struct TokenizerTrainOptions {
  int vocab_size = 32000;  // all pieces: 3 control, 256 bytes, those learned, the characters
  // The share of the corpus's characters that get a piece of their own, the commonest first and the
  // space always; the others are left to byte pieces.
  double character_coverage = 0.9995;
  int max_piece_length = 16;  // characters
};

inline constexpr int kFirstLearnedPiece = 3 + 256;
inline constexpr int kMaxTrainedPiece = 64;  // characters: what a reader of vocabularies accepts

struct TrainedTokenizer {
  Vocab vocab;
  int n_merged = 0, n_characters = 0;  // pieces of either kind
  // What the corpus becomes, line by line: exactly what Tokenizer gives, but for the cuts in words
  // longer than WordCounts::kMaxWord and bytes that are not UTF-8.
  uint64_t n_tokens = 0;
};

// Learns a vocabulary, with ids and scores in SentencePiece's order: <unk>, <s>, </s>, the bytes,
// merges as they were learned (scores 0, -1, ...), characters by their count. The pair chosen is
// the one with the highest count (overlapping occurrences count once), then the shortest, then the
// first in order of bytes. Two things differ from SentencePiece's trainer: all pairs that spell the
// same piece count as one, since the encoder merges them all (a word is always split here as the
// tokenizer will split it), and "<s>" in a text is text, as it is for the encoder. The result
// depends on `counts` and `options` alone. `progress` gets pieces, done of all.
//
// Throws Error for an empty corpus, for more characters than pieces, and for more pieces than the
// corpus gives, with the number that would do.
TrainedTokenizer train_tokenizer(const WordCounts& counts, const TokenizerTrainOptions& options,
                                 const Progress& progress = {});

}  // namespace tinyllama
