// Block bookkeeping of the paged cache. The pool knows only references; which block holds which
// positions is each sequence's own affair.
#include "model/kv_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/rope.h"

namespace tinyllama {
namespace {

KvShape shape_of(const Config& config, DType dtype) {
  if (traits(dtype).quantized && dtype != DType::q8_0) {
    fail(fmt::format("[kv cache] type {}: want f32, f16, bf16 or q8_0", traits(dtype).name));
  }
  return {config.n_kv_heads, config.head_dim, dtype};
}

}  // namespace

uint64_t kv_bytes_per_token(const Config& config, DType dtype) {
  const DTypeTraits& t = traits(dtype);
  const int64_t scales = (config.head_dim + t.block_size - 1) / t.block_size;
  const int64_t head = t.quantized ? config.head_dim + 2 * scales : config.head_dim * t.block_bytes;
  return static_cast<uint64_t>(config.n_layers * 2 * config.n_kv_heads * head);
}

KvCache::KvCache(Backend& backend, const Config& config, DType dtype, int64_t n_blocks)
    : backend_(backend),
      shape_(shape_of(config, dtype)),
      n_layers_(config.n_layers),
      n_blocks_(n_blocks),
      block_bytes_(backend.kv_block_bytes(shape_)) {
  const size_t bytes_per_block = block_bytes_ * static_cast<size_t>(n_layers_);  // in all layers
  if (n_blocks < 1 || n_blocks > INT32_MAX ||
      static_cast<size_t>(n_blocks) > SIZE_MAX / 2 / bytes_per_block) {
    fail(fmt::format("[kv cache] {} blocks of {} positions: want 1 to {}", n_blocks, kKvBlock,
                     std::min<size_t>(INT32_MAX, SIZE_MAX / 2 / bytes_per_block)));
  }
  memory_ = backend.alloc(bytes_per_block * static_cast<size_t>(n_blocks));
  references_.assign(static_cast<size_t>(n_blocks), 0);
  free_.reserve(static_cast<size_t>(n_blocks));
  for (int64_t b = n_blocks - 1; b >= 0; b--) free_.push_back(static_cast<int32_t>(b));
}

KvLayer KvCache::layer(int64_t index) const {
  TL_CHECK(index >= 0 && index < n_layers_);
  return {memory_.data() + static_cast<size_t>(index * n_blocks_) * block_bytes_, block_bytes_,
          shape_};
}

int32_t KvCache::take() {
  if (free_.empty()) {
    fail(fmt::format("[kv cache] all {} blocks of {} positions are in use", n_blocks_, kKvBlock));
  }
  const int32_t block = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(block)] = 1;
  return block;
}

void KvCache::release(int32_t block) {
  if (--references_[static_cast<size_t>(block)] == 0) free_.push_back(block);
}

void KvCache::copy_block(int32_t from, int32_t to) {
  for (int64_t index = 0; index < n_layers_; index++) {
    std::byte* data = layer(index).data;
    backend_.copy(data + static_cast<size_t>(from) * block_bytes_,
                  data + static_cast<size_t>(to) * block_bytes_, block_bytes_);
  }
}

// A copy shares what is written; blocks that the original only reserved stay its own.
KvSequence::KvSequence(const KvSequence& other)
    : cache_(other.cache_),
      blocks_(other.blocks_.begin(), other.blocks_.begin() + KvCache::blocks_for(other.length_)),
      length_(other.length_) {
  for (const int32_t block : blocks_) cache_->retain(block);
}

KvSequence::KvSequence(KvSequence&& other) noexcept
    : cache_(other.cache_),
      blocks_(std::exchange(other.blocks_, {})),
      length_(std::exchange(other.length_, 0)) {}

KvSequence& KvSequence::operator=(const KvSequence& other) {
  if (this != &other) *this = KvSequence(other);
  return *this;
}

KvSequence& KvSequence::operator=(KvSequence&& other) noexcept {
  KvSequence moved(std::move(other));
  std::swap(cache_, moved.cache_);
  std::swap(blocks_, moved.blocks_);
  std::swap(length_, moved.length_);
  return *this;
}

int64_t KvSequence::blocks_needed(int64_t n) const {
  if (n <= 0) return 0;
  const auto have = static_cast<int64_t>(blocks_.size());
  const int64_t more = std::max<int64_t>(0, KvCache::blocks_for(length_ + n) - have);
  return more + count_shared(length_, length_ + 1);
}

// Only blocks that hold written positions are ever shared, so of those that new positions go to,
// only the first can be.
void KvSequence::reserve(int64_t n) {
  if (n <= 0) return;
  require_free(blocks_needed(n));
  make_private(length_, length_ + 1);
  const auto want = static_cast<size_t>(KvCache::blocks_for(length_ + n));
  blocks_.reserve(want);
  while (blocks_.size() < want) blocks_.push_back(cache_->take());
}

void KvSequence::truncate(int64_t length) {
  TL_CHECK(length >= 0 && length <= length_);
  const auto keep = static_cast<size_t>(KvCache::blocks_for(length));
  while (blocks_.size() > keep) {
    cache_->release(blocks_.back());
    blocks_.pop_back();
  }
  length_ = length;
}

void KvSequence::shift(int64_t keep, int64_t discard, std::span<const double> inv_freq) {
  TL_CHECK(keep >= 0 && discard >= 0 && keep + discard <= length_);
  const int64_t moved = length_ - keep - discard;
  if (discard > 0 && moved > 0) {
    require_free(count_shared(keep, keep + moved));
    make_private(keep, keep + moved);
    std::vector<float> rope(2 * inv_freq.size());
    rope_row(inv_freq, 1, -discard, rope.data());
    for (int64_t index = 0; index < cache_->n_layers_; index++) {
      cache_->backend_.move_kv(cache_->layer(index), blocks_, keep + discard, keep, moved, rope);
    }
  }
  truncate(length_ - discard);
}

void KvSequence::require_free(int64_t n) const {
  if (n > cache_->n_free()) {
    fail(fmt::format("[kv cache] want {} free blocks of {} positions, got {} of {}", n, kKvBlock,
                     cache_->n_free(), cache_->n_blocks_));
  }
}

int64_t KvSequence::count_shared(int64_t begin, int64_t end) const {
  const int64_t last = std::min(KvCache::blocks_for(end), static_cast<int64_t>(blocks_.size()));
  int64_t shared = 0;
  for (int64_t i = begin / kKvBlock; i < last; i++) {
    shared += cache_->references_[static_cast<size_t>(blocks_[static_cast<size_t>(i)])] > 1;
  }
  return shared;
}

void KvSequence::make_private(int64_t begin, int64_t end) {
  const int64_t last = std::min(KvCache::blocks_for(end), static_cast<int64_t>(blocks_.size()));
  for (int64_t i = begin / kKvBlock; i < last; i++) {
    int32_t& block = blocks_[static_cast<size_t>(i)];
    if (cache_->references_[static_cast<size_t>(block)] == 1) continue;
    const int32_t mine = cache_->take();
    cache_->copy_block(block, mine);
    cache_->release(std::exchange(block, mine));
  }
}

}  // namespace tinyllama
