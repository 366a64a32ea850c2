// What one forward pass computes: a ragged list of token runs. Prefill, chunked prefill, decoding,
// draft verification, perplexity and packed training documents are all segments with different
// n_rows and past.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tinyllama {

// Positions per block of the paged KV cache. Attention's reduction tree is built of these blocks,
// so the number is part of what a result's bits mean.
inline constexpr int64_t kKvBlock = 64;

// Consecutive rows of one sequence. Row first_row + i stands at position past + i.
struct Segment {
  int64_t first_row = 0;
  int64_t n_rows = 0;
  int64_t past = 0;  // positions of this sequence that are in the cache before this step
  // kv_blocks[i] holds positions [i * kKvBlock, (i + 1) * kKvBlock); covers past + n_rows
  // positions.
  std::span<const int32_t> kv_blocks;
  // RoPE's frequencies for this sequence, radians per position: (head_dim / 2), and the factor that
  // multiplies cos and sin (YaRN's attention factor; else 1). Empty: the model's own.
  std::span<const double> inv_freq;
  double rope_scale = 1;
};

struct Batch {
  std::vector<int32_t> tokens;      // (rows)
  std::vector<Segment> segments;    // in row order, covering every row once
  std::vector<int32_t> logit_rows;  // rows whose logits are wanted, ascending

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
};

}  // namespace tinyllama
