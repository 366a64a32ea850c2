// The paged KV cache: a fixed pool of blocks of kKvBlock positions, reference counted so that
// sequences may share a prefix. Memory is taken once, at construction.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "formats/config.h"

namespace tinyllama {

// Bytes of keys and values that one position takes in all layers; a backend may pad them.
uint64_t kv_bytes_per_token(const Config& config, DType dtype);

class KvCache {
 public:
  // Holds `n_blocks` blocks in every layer. dtype: f32, f16, bf16, or q8_0 (int8, one FP16 scale
  // for 32 features of a position).
  KvCache(Backend& backend, const Config& config, DType dtype, int64_t n_blocks);

  static int64_t blocks_for(int64_t positions) { return (positions + kKvBlock - 1) / kKvBlock; }

  KvLayer layer(int64_t index) const;
  DType dtype() const { return shape_.dtype; }
  int64_t n_blocks() const { return n_blocks_; }
  int64_t n_free() const { return static_cast<int64_t>(free_.size()); }
  size_t bytes() const { return memory_.size(); }

 private:
  friend class KvSequence;
  int32_t take();  // a block with one reference; throws Error when none is free
  void retain(int32_t block) { references_[static_cast<size_t>(block)]++; }
  void release(int32_t block);
  void copy_block(int32_t from, int32_t to);

  Backend& backend_;
  KvShape shape_;
  int64_t n_layers_, n_blocks_;
  size_t block_bytes_;
  Buffer memory_;
  std::vector<int32_t> free_;
  std::vector<int32_t> references_;
};

// One sequence's positions [0, length()) in a cache. Copies share blocks; a shared block is copied
// before it is written (copy-on-write).
class KvSequence {
 public:
  explicit KvSequence(KvCache& cache) : cache_(&cache) {}
  ~KvSequence() { clear(); }
  KvSequence(const KvSequence& other);
  KvSequence& operator=(const KvSequence& other);
  KvSequence(KvSequence&& other) noexcept;
  KvSequence& operator=(KvSequence&& other) noexcept;

  int64_t length() const { return length_; }
  std::span<const int32_t> blocks() const { return blocks_; }
  // Blocks that reserve(n) would take from the pool now.
  int64_t blocks_needed(int64_t n) const;
  // Makes positions [length(), length() + n) writable; throws Error (and changes nothing) when the
  // pool has too few free blocks.
  void reserve(int64_t n);
  // The next n reserved positions now hold keys and values.
  void advance(int64_t n) { length_ += n; }
  // Forgets all but the first `length` positions.
  void truncate(int64_t length);
  void clear() { truncate(0); }
  // Drops positions [keep, keep + discard) and moves the rest down, re-rotating keys by -discard
  // positions with `inv_freq` (head_dim / 2). The result is a function of the history, not of the
  // tokens left. Throws Error (and changes nothing) when shared blocks would have to be copied and
  // the pool has too few free ones.
  void shift(int64_t keep, int64_t discard, std::span<const double> inv_freq);

 private:
  // Throws Error when the pool has fewer than `n` free blocks.
  void require_free(int64_t n) const;
  // Of the blocks that hold positions [begin, end): how many other sequences hold too, and the
  // replacing of those by copies.
  int64_t count_shared(int64_t begin, int64_t end) const;
  void make_private(int64_t begin, int64_t end);

  KvCache* cache_;
  std::vector<int32_t> blocks_;
  int64_t length_ = 0;
};

}  // namespace tinyllama
