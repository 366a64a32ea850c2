// Attention over the paged cache, tiled so that no (T, T) matrix exists. Each query's reduction
// tree depends on its position alone: 64-key blocks, a running softmax (Milakov and Gimelshein
// 2018) inside splits of 512 keys, splits merged left to right; grouping queries only shares the
// loads of keys and values.
//
// A kv head's part of a block: keys transposed, (head_dim, 64), so that score lanes are positions;
// then values (64, padded head_dim), so that output lanes are features.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/vec.h"

namespace tinyllama::cpu {
namespace {

constexpr int kBlockKeys = 64;
constexpr int64_t kSplitBlocks = 8;
constexpr float kMinusInfinity = -__builtin_inff();

struct KvF32 {
  using Element = float;
  TL_INLINE F load(const float* p) { return load_f(p); }
  TL_INLINE float to(float x) { return x; }
  TL_INLINE float from(float x) { return x; }
};
struct KvF16 {
  using Element = uint16_t;
  TL_INLINE F load(const uint16_t* p) { return load_f16(p); }
  TL_INLINE uint16_t to(float x) { return to_f16(x); }
  TL_INLINE float from(uint16_t x) { return from_f16(x); }
};
struct KvBF16 {
  using Element = uint16_t;
  TL_INLINE F load(const uint16_t* p) { return load_bf16(p); }
  TL_INLINE uint16_t to(float x) { return to_bf16(x); }
  TL_INLINE float from(uint16_t x) { return from_bf16(x); }
};

// Per query of a job: the scaled query, the scores of one block, the running softmax of the split
// being read and of all splits before it.
struct Queries {
  float *q, *scores, *split_out, *out;  // (n, dim), (n, 64), (n, dim), (n, dim)
  float *split_max, *split_sum, *max, *sum;
  int64_t dim;  // padded head_dim
};

Queries carve(float* scratch, int64_t n, int64_t dim) {
  Queries s = {};
  const int64_t padded = (n + 3) / 4 * 4;
  s.dim = dim;
  s.q = scratch;
  s.split_out = s.q + padded * dim;
  s.out = s.split_out + padded * dim;
  s.scores = s.out + padded * dim;
  s.split_max = s.scores + padded * kBlockKeys;
  s.split_sum = s.split_max + padded;
  s.max = s.split_sum + padded;
  s.sum = s.max + padded;
  return s;
}

// scores[i][0..63] = q[i] . keys, i in [0, QN): each sum runs over features in order.
template <class Kv, int QN>
TL_INLINE void block_scores(const Queries& s, int64_t first, int64_t head_dim,
                            const typename Kv::Element* keys) {
  constexpr int kVectors = 4;
  for (int64_t at = 0; at < kBlockKeys; at += kVectors * kLanes) {
    F acc[QN][kVectors];
    for (int i = 0; i < QN; i++)
      for (int v = 0; v < kVectors; v++) acc[i][v] = set_f(0);
    for (int64_t d = 0; d < head_dim; d++) {
      F k[kVectors];
      TL_UNROLL(4)
      for (int v = 0; v < kVectors; v++) k[v] = Kv::load(keys + d * kBlockKeys + at + v * kLanes);
      TL_UNROLL(4)
      for (int i = 0; i < QN; i++) {
        const F q = set_f(s.q[(first + i) * s.dim + d]);
        TL_UNROLL(4)
        for (int v = 0; v < kVectors; v++) acc[i][v] = fma_f(k[v], q, acc[i][v]);
      }
    }
    for (int i = 0; i < QN; i++)
      for (int v = 0; v < kVectors; v++)
        store_f(s.scores + (first + i) * kBlockKeys + at + v * kLanes, acc[i][v]);
  }
}

// Turns the block's scores of query i into weights and rescales what the split has so far. `valid`
// keys count.
TL_INLINE void block_softmax(const Queries& s, int64_t i, int64_t valid, bool first_of_split) {
  float* p = s.scores + i * kBlockKeys;
  for (int64_t j = valid; j < kBlockKeys; j++) p[j] = kMinusInfinity;
  F largest = load_f(p);
  for (int64_t j = kLanes; j < kBlockKeys; j += kLanes) largest = max_f(largest, load_f(p + j));
  float max = reduce_max_f(largest);
  if (!first_of_split && s.split_max[i] > max) max = s.split_max[i];
  for (int64_t j = 0; j < kBlockKeys; j += kLanes)
    store_f(p + j, exp_f(sub_f(load_f(p + j), set_f(max))));
  for (int64_t j = valid; j < kBlockKeys; j++) p[j] = 0;
  F sum = load_f(p);
  for (int64_t j = kLanes; j < kBlockKeys; j += kLanes) sum = add_f(sum, load_f(p + j));
  float* out = s.split_out + i * s.dim;
  if (first_of_split) {
    s.split_sum[i] = reduce_add_f(sum);
    for (int64_t d = 0; d < s.dim; d += kLanes) store_f(out + d, set_f(0));
  } else if (max == s.split_max[i]) {
    s.split_sum[i] += reduce_add_f(sum);  // rescaling by exp(0) = 1 changes no bit
  } else {
    const F scale = exp_f(set_f(s.split_max[i] - max));
    float factor[kLanes];
    store_f(factor, scale);
    s.split_sum[i] = s.split_sum[i] * factor[0] + reduce_add_f(sum);
    for (int64_t d = 0; d < s.dim; d += kLanes) store_f(out + d, mul_f(load_f(out + d), scale));
  }
  s.split_max[i] = max;
}

// split_out[i] += weights[i][from, to) values, over `DV` vectors of features, positions in order.
template <class Kv, int QN, int DV>
TL_INLINE void block_values(const Queries& s, int64_t first, const typename Kv::Element* values,
                            int64_t from, int64_t to, int64_t feature) {
  F acc[QN][DV];
  for (int i = 0; i < QN; i++)
    for (int v = 0; v < DV; v++)
      acc[i][v] = load_f(s.split_out + (first + i) * s.dim + feature + v * kLanes);
  for (int64_t j = from; j < to; j++) {
    F value[DV];
    TL_UNROLL(4)
    for (int v = 0; v < DV; v++) value[v] = Kv::load(values + j * s.dim + feature + v * kLanes);
    TL_UNROLL(4)
    for (int i = 0; i < QN; i++) {
      const F p = set_f(s.scores[(first + i) * kBlockKeys + j]);
      TL_UNROLL(4)
      for (int v = 0; v < DV; v++) acc[i][v] = fma_f(value[v], p, acc[i][v]);
    }
  }
  for (int i = 0; i < QN; i++)
    for (int v = 0; v < DV; v++)
      store_f(s.split_out + (first + i) * s.dim + feature + v * kLanes, acc[i][v]);
}

template <class Kv, int QN>
TL_INLINE void all_values(const Queries& s, int64_t first, const typename Kv::Element* values,
                          int64_t from, int64_t to) {
  if (from >= to) return;
  int64_t feature = 0;
  for (; feature + 4 * kLanes <= s.dim; feature += 4 * kLanes)
    block_values<Kv, QN, 4>(s, first, values, from, to, feature);
  for (; feature < s.dim; feature += kLanes)
    block_values<Kv, QN, 1>(s, first, values, from, to, feature);
}

// Keys of block `b` that query i of the job sees: 1..64 (the block is one it reaches).
TL_INLINE int64_t visible(const AttentionJob& job, int64_t query, int64_t b) {
  const int64_t n = job.first_position + query / job.group + 1 - b * kBlockKeys;
  return n < kBlockKeys ? n : kBlockKeys;
}

// The step of QN queries from `first` over block `b`.
template <class Kv, int QN>
TL_INLINE void block_step(const AttentionJob& job, const Queries& s, int64_t first, int64_t b) {
  const auto* keys = reinterpret_cast<const typename Kv::Element*>(
      job.cache + static_cast<size_t>(job.blocks[b]) * job.block_bytes);
  const auto* values = keys + job.head_dim * kBlockKeys;
  block_scores<Kv, QN>(s, first, job.head_dim, keys);
  for (int i = 0; i < QN; i++)
    block_softmax(s, first + i, visible(job, first + i, b), b % kSplitBlocks == 0);
  const int64_t common = visible(job, first, b);  // later queries see at least as much
  all_values<Kv, QN>(s, first, values, 0, common);
  for (int i = 0; i < QN; i++)
    all_values<Kv, 1>(s, first + i, values, common, visible(job, first + i, b));
}

TL_INLINE void merge_split(const Queries& s, int64_t i, bool first_split) {
  float* out = s.out + i * s.dim;
  const float* split = s.split_out + i * s.dim;
  if (first_split) {
    s.max[i] = s.split_max[i];
    s.sum[i] = s.split_sum[i];
    for (int64_t d = 0; d < s.dim; d += kLanes) store_f(out + d, load_f(split + d));
    return;
  }
  const float max = s.max[i] > s.split_max[i] ? s.max[i] : s.split_max[i];
  const F before = exp_f(set_f(s.max[i] - max)), here = exp_f(set_f(s.split_max[i] - max));
  float a[kLanes], b[kLanes];
  store_f(a, before);
  store_f(b, here);
  s.sum[i] = s.sum[i] * a[0] + s.split_sum[i] * b[0];
  for (int64_t d = 0; d < s.dim; d += kLanes)
    store_f(out + d, fma_f(load_f(out + d), before, mul_f(load_f(split + d), here)));
  s.max[i] = max;
}

template <class Kv>
void attend(const AttentionJob& job) {
  const int64_t n = job.n_rows * job.group;
  const Queries s = carve(job.scratch, n, padded_head_dim(job.head_dim));
  const auto scale = static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(job.head_dim)));
  for (int64_t i = 0; i < n; i++) {
    const float* q = job.q + i / job.group * job.q_stride + i % job.group * job.head_dim;
    for (int64_t d = 0; d < job.head_dim; d++) s.q[i * s.dim + d] = q[d] * scale;
  }
  const int64_t n_blocks = (job.first_position + job.n_rows + kBlockKeys - 1) / kBlockKeys;
  for (int64_t split = 0; split < n_blocks; split += kSplitBlocks) {
    const int64_t end = split + kSplitBlocks < n_blocks ? split + kSplitBlocks : n_blocks;
    for (int64_t b = split; b < end; b++) {
      // Rows before this one end before the block begins.
      const int64_t first_row =
          b * kBlockKeys > job.first_position ? b * kBlockKeys - job.first_position : 0;
      int64_t i = first_row * job.group;
      for (; i + kQueryGroup <= n; i += kQueryGroup) block_step<Kv, kQueryGroup>(job, s, i, b);
      for (; i < n; i++) block_step<Kv, 1>(job, s, i, b);
    }
    const int64_t begin =
        split * kBlockKeys > job.first_position ? split * kBlockKeys - job.first_position : 0;
    for (int64_t i = begin * job.group; i < n; i++) merge_split(s, i, split == 0);
  }
  for (int64_t i = 0; i < n; i++) {
    float* out = job.out + i / job.group * job.out_stride + i % job.group * job.head_dim;
    for (int64_t d = 0; d < job.head_dim; d++) out[d] = s.out[i * s.dim + d] / s.sum[i];
  }
}

template <class Kv>
void store(std::byte* head, int64_t head_dim, int64_t slot, const float* k, const float* v) {
  auto* keys = reinterpret_cast<typename Kv::Element*>(head);
  auto* values = keys + head_dim * kBlockKeys + slot * padded_head_dim(head_dim);
  for (int64_t d = 0; d < head_dim; d++) {
    keys[d * kBlockKeys + slot] = Kv::to(k[d]);
    values[d] = Kv::to(v[d]);
  }
}

template <class Kv>
void load(const std::byte* head, int64_t head_dim, int64_t slot, float* k, float* v) {
  const auto* keys = reinterpret_cast<const typename Kv::Element*>(head);
  const auto* values = keys + head_dim * kBlockKeys + slot * padded_head_dim(head_dim);
  for (int64_t d = 0; d < head_dim; d++) {
    k[d] = Kv::from(keys[d * kBlockKeys + slot]);
    v[d] = Kv::from(values[d]);
  }
}

}  // namespace

namespace TINYLLAMA_ISA {

void attention(const AttentionJob& job) {
  switch (job.format) {
    case KvFormat::f32:
      return attend<KvF32>(job);
    case KvFormat::f16:
      return attend<KvF16>(job);
    case KvFormat::bf16:
      return attend<KvBF16>(job);
  }
}

void store_kv(KvFormat format, std::byte* head, int64_t head_dim, int64_t slot, const float* k,
              const float* v) {
  switch (format) {
    case KvFormat::f32:
      return store<KvF32>(head, head_dim, slot, k, v);
    case KvFormat::f16:
      return store<KvF16>(head, head_dim, slot, k, v);
    case KvFormat::bf16:
      return store<KvBF16>(head, head_dim, slot, k, v);
  }
}

void load_kv(KvFormat format, const std::byte* head, int64_t head_dim, int64_t slot, float* k,
             float* v) {
  switch (format) {
    case KvFormat::f32:
      return load<KvF32>(head, head_dim, slot, k, v);
    case KvFormat::f16:
      return load<KvF16>(head, head_dim, slot, k, v);
    case KvFormat::bf16:
      return load<KvBF16>(head, head_dim, slot, k, v);
  }
}

}  // namespace TINYLLAMA_ISA
}  // namespace tinyllama::cpu
