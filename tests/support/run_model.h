// Runs a model the way an engine would, in as few lines as a test wants: sequences, steps, logits.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "model/llama.h"
#include "reference.h"

namespace tinyllama::testing {

using Logits = std::vector<float>;  // (rows, vocab)

// What one sequence adds to a step.
struct Piece {
  KvSequence* sequence;
  std::span<const int32_t> tokens;
  const RopeFrequencies* rope = nullptr;  // null: the model's own
};

enum class Rows { all, last };

// One step over all of `pieces`; logits of every row, or of each piece's last, piece after piece.
inline Logits step(const Llama& model, KvCache& cache, std::span<const Piece> pieces,
                   Rows wanted = Rows::all) {
  Batch batch;
  for (const Piece& piece : pieces) {
    const auto n = static_cast<int64_t>(piece.tokens.size());
    piece.sequence->reserve(n);
    Segment segment{batch.rows(), n, piece.sequence->length(), piece.sequence->blocks(), {}, 1};
    if (piece.rope != nullptr) {
      segment.inv_freq = piece.rope->inv_freq;
      segment.rope_scale = piece.rope->scale;
    }
    batch.segments.push_back(segment);
    batch.tokens.insert(batch.tokens.end(), piece.tokens.begin(), piece.tokens.end());
  }
  for (const Segment& segment : batch.segments) {
    const int64_t end = segment.first_row + segment.n_rows;
    for (int64_t r = wanted == Rows::all ? segment.first_row : end - 1; r < end; r++) {
      batch.logit_rows.push_back(static_cast<int32_t>(r));
    }
  }

  const auto n_logits = static_cast<int64_t>(batch.logit_rows.size());
  Activations activations(model.backend(), model.config(), batch.rows(), n_logits);
  forward(model, batch, cache, activations);
  for (const Piece& piece : pieces)
    piece.sequence->advance(static_cast<int64_t>(piece.tokens.size()));
  const Tensor logits = activations.logits(n_logits);
  Logits result(static_cast<size_t>(logits.elements()));
  model.backend().copy_to_host(logits.data, reinterpret_cast<std::byte*>(result.data()),
                               logits.bytes());
  return result;
}

inline Logits step(const Llama& model, KvCache& cache, KvSequence& sequence,
                   std::span<const int32_t> tokens, const RopeFrequencies* rope = nullptr) {
  const Piece piece{&sequence, tokens, rope};
  return step(model, cache, {&piece, 1});
}

// Logits of every position of one sequence, alone in its own cache, `chunk` tokens a step (0: all
// at once).
inline Logits all_logits(const Llama& model, DType kv, std::span<const int32_t> tokens,
                         int64_t chunk = 0, const RopeFrequencies* rope = nullptr) {
  const auto n = static_cast<int64_t>(tokens.size());
  KvCache cache(model.backend(), model.config(), kv, KvCache::blocks_for(n));
  KvSequence sequence(cache);
  Logits result;
  for (int64_t done = 0; done < n;) {
    const int64_t take = std::min(chunk == 0 ? n : chunk, n - done);
    const Logits part =
        step(model, cache, sequence,
             tokens.subspan(static_cast<size_t>(done), static_cast<size_t>(take)), rope);
    result.insert(result.end(), part.begin(), part.end());
    done += take;
  }
  return result;
}

inline size_t argmax(std::span<const float> logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// The last row of (rows, vocab).
inline std::span<const float> last_row(const Logits& logits, int64_t vocab) {
  return std::span(logits).last(static_cast<size_t>(vocab));
}

inline std::vector<int32_t> greedy(const Llama& model, DType kv, std::span<const int32_t> prompt,
                                   int64_t n) {
  const int64_t vocab = model.config().vocab_size;
  const auto total = static_cast<int64_t>(prompt.size()) + n;
  KvCache cache(model.backend(), model.config(), kv, KvCache::blocks_for(total));
  KvSequence sequence(cache);
  std::vector<int32_t> tokens;
  Logits logits = step(model, cache, sequence, prompt);
  while (static_cast<int64_t>(tokens.size()) < n) {
    tokens.push_back(static_cast<int32_t>(argmax(last_row(logits, vocab))));
    logits = step(model, cache, sequence, {&tokens.back(), 1});
  }
  return tokens;
}

struct Difference {
  double largest = 0;    // max |got - want|
  double magnitude = 0;  // max |want|
};

template <class Got, class Want>
Difference compare(const Got& got, const Want& want) {
  Difference difference;
  if (got.size() != want.size()) return {INFINITY, 0};
  for (size_t i = 0; i < got.size(); i++) {
    const double w = static_cast<double>(want[i]), e = std::fabs(static_cast<double>(got[i]) - w);
    difference.largest = std::isnan(e) ? INFINITY : std::max(difference.largest, e);
    difference.magnitude = std::max(difference.magnitude, std::fabs(w));
  }
  return difference;
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// How far FP32 arithmetic may take a logit from the exact one. The longest chain of roundings from
// a token to its logit is, in each layer, the inner lengths of its products and the keys attended
// to; by Higham and Mary (2019, theorem 2.4) n roundings of mean zero grow like lambda * sqrt(n) *
// u with u = 2^-24, exceeded with probability 2 exp(-lambda^2 / 2), 0.02 for lambda = 3, where the
// worst-case bound is n * u. It is relative to the sums' magnitudes, here the largest logit's.
inline double fp32_tolerance(const Config& c, int64_t positions, double largest_logit) {
  const int64_t layer = 2 * c.hidden + c.head_dim + positions + c.q_dim() + c.intermediate;
  const auto roundings = static_cast<double>(c.n_layers * layer + 2 * c.hidden);
  return 3 * std::sqrt(roundings) * 0x1p-24 * largest_logit;
}

}  // namespace tinyllama::testing
