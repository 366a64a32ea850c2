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
constexpr int64_t kDecodeFor = 16;  // queries from which on decoding a block once pays
constexpr float kMinusInfinity = -__builtin_inff();

// How a kv head's part of a block is read, one struct per cache type: F key(d, slot), feature d of
// kLanes positions from `slot`; F value(slot, d), kLanes features from d of one position. Both are
// exactly what put() rounded to.
template <class Element, class Load>
struct KvElements {
  const Element *keys, *values;
  int64_t dim;  // padded head_dim

  TL_INLINE KvElements view(const std::byte* head, int64_t head_dim) {
    const auto* keys = reinterpret_cast<const Element*>(head);
    return {keys, keys + head_dim * kBlockKeys, padded_head_dim(head_dim)};
  }
  TL_MEMBER F key(int64_t d, int64_t slot) const {
    return Load::load(keys + d * kBlockKeys + slot);
  }
  TL_MEMBER F value(int64_t slot, int64_t d) const { return Load::load(values + slot * dim + d); }
};
struct LoadF32 {
  TL_INLINE F load(const float* p) { return load_f(p); }
};
struct LoadF16 {
  TL_INLINE F load(const uint16_t* p) { return load_f16(p); }
};
struct LoadBF16 {
  TL_INLINE F load(const uint16_t* p) { return load_bf16(p); }
};
using KvF32 = KvElements<float, LoadF32>;
using KvF16 = KvElements<uint16_t, LoadF16>;
using KvBF16 = KvElements<uint16_t, LoadBF16>;
// int8 with one FP16 scale for 32 features of a position; scale * q has at most 19 bits: exact in
// FP32.
struct KvQ8 {
  const int8_t *keys, *values;
  const uint16_t *key_scales, *value_scales;  // (blocks of 32, 64) and (64, blocks of 32)
  int64_t dim, scales;

  TL_INLINE KvQ8 view(const std::byte* head, int64_t head_dim) {
    const int64_t dim = padded_head_dim(head_dim), scales = kv_scales(head_dim);
    const auto* keys = reinterpret_cast<const int8_t*>(head);
    const auto* values = keys + head_dim * kBlockKeys;
    const auto* key_scales = reinterpret_cast<const uint16_t*>(values + dim * kBlockKeys);
    return {keys, values, key_scales, key_scales + scales * kBlockKeys, dim, scales};
  }
  TL_MEMBER F key(int64_t d, int64_t slot) const {
    return mul_f(float_i(load_s8(keys + d * kBlockKeys + slot)),
                 load_f16(key_scales + d / kKvScaled * kBlockKeys + slot));
  }
  TL_MEMBER F value(int64_t slot, int64_t d) const {
    return mul_f(float_i(load_s8(values + slot * dim + d)),
                 set_f(from_f16(value_scales[slot * scales + d / kKvScaled])));
  }
};

// Per query of a job: the scaled query, the scores of one block, the running softmax of the split
// being read and of all splits before it.
struct Queries {
  float *q, *scores, *split_out, *out;  // (n, dim), (n, 64), (n, dim), (n, dim)
  std::byte* decoded;                   // one block in FP32
  float *split_max, *split_sum, *max, *sum;
  int64_t dim;  // padded head_dim

  // Query i's features, kQueryGroup floats apart: those that share a pass lie side by side.
  TL_MEMBER float* query(int64_t i) const {
    return q + i / kQueryGroup * kQueryGroup * dim + i % kQueryGroup;
  }
};

Queries carve(float* scratch, int64_t n, int64_t dim) {
  Queries s = {};
  const int64_t padded = (n + 7) / 8 * 8;
  s.dim = dim;
  s.q = scratch;
  s.split_out = s.q + padded * dim;
  s.out = s.split_out + padded * dim;
  s.scores = s.out + padded * dim;
  s.split_max = s.scores + padded * kBlockKeys;
  s.split_sum = s.split_max + padded;
  s.max = s.split_sum + padded;
  s.sum = s.max + padded;
  s.decoded = reinterpret_cast<std::byte*>(s.sum + padded);
  return s;
}

// Fetches memory that will be read soon, a line at a time, or nothing.
struct FetchAhead {
  const std::byte* at;
  TL_MEMBER void fetch_line() {
    prefetch_far(at);
    at += 64;
  }
};
struct FetchNothing {
  TL_MEMBER void fetch_line() {}
};

// scores[i][0..63] = q[i] . keys, i in [0, QN): each sum runs over features in order. Meanwhile the
// block to come is fetched: blocks lie apart, so that no hardware would guess where it is, and all
// at once would stall.
template <class Kv, int QN, class Ahead>
TL_INLINE void block_scores(const Queries& s, int64_t first, int64_t head_dim, const Kv& kv,
                            Ahead ahead) {
  constexpr int kVectors = QN == 1 ? 4 : kQueryVectors;
  constexpr int kPasses = kBlockKeys / (kVectors * kLanes);
  constexpr int kLines = (2 * static_cast<int>(sizeof(*kv.keys)) + kPasses - 1) / kPasses;
  for (int64_t at = 0; at < kBlockKeys; at += kVectors * kLanes) {
    const float* queries = s.query(first);
    F acc[QN][kVectors];
    for (int i = 0; i < QN; i++)
      for (int v = 0; v < kVectors; v++) acc[i][v] = set_f(0);
    for (int64_t d = 0; d < head_dim; d++) {
      TL_UNROLL(8)
      for (int line = 0; line < kLines; line++) ahead.fetch_line();
      F k[kVectors];
      TL_UNROLL(4)
      for (int v = 0; v < kVectors; v++) k[v] = kv.key(d, at + v * kLanes);
      TL_UNROLL(8)
      for (int i = 0; i < QN; i++) {
        const F q = set_f(queries[d * kQueryGroup + i]);
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
TL_INLINE void block_values(const Queries& s, int64_t first, const Kv& kv, int64_t from, int64_t to,
                            int64_t feature) {
  F acc[QN][DV];
  for (int i = 0; i < QN; i++)
    for (int v = 0; v < DV; v++)
      acc[i][v] = load_f(s.split_out + (first + i) * s.dim + feature + v * kLanes);
  for (int64_t j = from; j < to; j++) {
    F value[DV];
    TL_UNROLL(4)
    for (int v = 0; v < DV; v++) value[v] = kv.value(j, feature + v * kLanes);
    TL_UNROLL(8)
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
TL_INLINE void all_values(const Queries& s, int64_t first, const Kv& kv, int64_t from, int64_t to) {
  constexpr int kVectors = QN == 1 ? 4 : kQueryVectors;
  if (from >= to) return;
  int64_t feature = 0;
  for (; feature + kVectors * kLanes <= s.dim; feature += kVectors * kLanes)
    block_values<Kv, QN, kVectors>(s, first, kv, from, to, feature);
  for (; feature < s.dim; feature += kLanes)
    block_values<Kv, QN, 1>(s, first, kv, from, to, feature);
}

// Keys of block `b` that query i of the job sees: 1..64 (the block is one it reaches).
TL_INLINE int64_t visible(const AttentionJob& job, int64_t query, int64_t b) {
  const int64_t n = job.first_position + query / job.group + 1 - b * kBlockKeys;
  return n < kBlockKeys ? n : kBlockKeys;
}

// The step of QN queries from `first` over block `b`.
template <class Kv, int QN, class Ahead>
TL_INLINE void block_step(const AttentionJob& job, const Queries& s, int64_t first, int64_t b,
                          const Kv& kv, Ahead ahead) {
  block_scores<Kv, QN, Ahead>(s, first, job.head_dim, kv, ahead);
  for (int i = 0; i < QN; i++)
    block_softmax(s, first + i, visible(job, first + i, b), b % kSplitBlocks == 0);
  const int64_t common = visible(job, first, b);  // later queries see at least as much
  all_values<Kv, QN>(s, first, kv, 0, common);
  for (int i = 0; i < QN; i++)
    all_values<Kv, 1>(s, first + i, kv, common, visible(job, first + i, b));
}

// The step of queries [from, n) over block `b`.
template <class Kv, class Ahead>
TL_INLINE void all_steps(const AttentionJob& job, const Queries& s, int64_t from, int64_t n,
                         int64_t b, const Kv& kv, Ahead ahead) {
  int64_t i = from;
  for (; i < n && i % kQueryGroup != 0; i++) block_step<Kv, 1, Ahead>(job, s, i, b, kv, ahead);
  for (; i + kQueryGroup <= n; i += kQueryGroup)
    block_step<Kv, kQueryGroup, Ahead>(job, s, i, b, kv, ahead);
  for (; i < n; i++) block_step<Kv, 1, Ahead>(job, s, i, b, kv, ahead);
}

// A block in FP32, for many queries to read.
template <class Kv>
KvF32 decode_block(const Kv& kv, int64_t head_dim, std::byte* to) {
  auto* keys = reinterpret_cast<float*>(to);
  float* values = keys + head_dim * kBlockKeys;
  for (int64_t d = 0; d < head_dim; d++) {
    for (int64_t slot = 0; slot < kBlockKeys; slot += kLanes)
      store_f(keys + d * kBlockKeys + slot, kv.key(d, slot));
  }
  for (int64_t slot = 0; slot < kBlockKeys; slot++) {
    for (int64_t d = 0; d < kv.dim; d += kLanes)
      store_f(values + slot * kv.dim + d, kv.value(slot, d));
  }
  return {keys, values, kv.dim};
}
TL_INLINE KvF32 decode_block(const KvF32& kv, int64_t, std::byte*) {
  return kv;
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
    for (int64_t d = 0; d < job.head_dim; d++) s.query(i)[d * kQueryGroup] = q[d] * scale;
  }
  const int64_t n_blocks = (job.first_position + job.n_rows + kBlockKeys - 1) / kBlockKeys;
  for (int64_t split = 0; split < n_blocks; split += kSplitBlocks) {
    const int64_t end = split + kSplitBlocks < n_blocks ? split + kSplitBlocks : n_blocks;
    for (int64_t b = split; b < end; b++) {
      // Rows before this one end before the block begins.
      const int64_t first_row =
          b * kBlockKeys > job.first_position ? b * kBlockKeys - job.first_position : 0;
      const int64_t from = first_row * job.group;
      const auto block_at = [&](int64_t at) {
        return job.cache + static_cast<size_t>(job.blocks[at]) * job.block_bytes;
      };
      const Kv kv = Kv::view(block_at(b), job.head_dim);
      if (n - from >= kDecodeFor) {
        all_steps(job, s, from, n, b, decode_block(kv, job.head_dim, s.decoded), FetchNothing{});
      } else {
        all_steps(job, s, from, n, b, kv, FetchAhead{block_at(b + 1 < n_blocks ? b + 1 : b)});
      }
    }
    const int64_t begin =
        split * kBlockKeys > job.first_position ? split * kBlockKeys - job.first_position : 0;
    for (int64_t i = begin * job.group; i < n; i++) merge_split(s, i, split == 0);
  }
  for (int64_t i = 0; i < n; i++) {
    float* out = job.out + i / job.group * job.out_stride + i % job.group * job.head_dim;
    for (int64_t d = 0; d < job.head_dim; d++) out[d] = s.out[i * s.dim + d] / s.sum[i];
    if (job.largest == nullptr) continue;
    const int64_t at = i / job.group * job.softmax_stride + i % job.group;
    job.largest[at] = s.max[i];
    job.sums[at] = s.sum[i];
  }
}

// One position of a kv head in caches of plain elements.
template <class Element, class To>
void store_as(std::byte* head, int64_t head_dim, int64_t slot, const float* k, const float* v,
              To to) {
  auto* keys = reinterpret_cast<Element*>(head);
  auto* values = keys + head_dim * kBlockKeys + slot * padded_head_dim(head_dim);
  for (int64_t d = 0; d < head_dim; d++) {
    keys[d * kBlockKeys + slot] = to(k[d]);
    values[d] = to(v[d]);
  }
}

template <class Element, class From>
void load_as(const std::byte* head, int64_t head_dim, int64_t slot, float* k, float* v, From from) {
  const auto* keys = reinterpret_cast<const Element*>(head);
  const auto* values = keys + head_dim * kBlockKeys + slot * padded_head_dim(head_dim);
  for (int64_t d = 0; d < head_dim; d++) {
    k[d] = from(keys[d * kBlockKeys + slot]);
    v[d] = from(values[d]);
  }
}

// Up to 32 features to int8, `stride` apart, and their FP16 scale. Codes are nearest multiples of
// the scale as stored.
TL_INLINE uint16_t store_scaled(const float* x, int64_t n, int8_t* q, int64_t stride) {
  constexpr float kLargestHalf = 65504.0f,
                  kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to integers
  float largest = 0;
  for (int64_t i = 0; i < n; i++)
    largest = __builtin_fabsf(x[i]) > largest ? __builtin_fabsf(x[i]) : largest;
  const float wanted = largest / 127.0f;
  const uint16_t half = to_f16(wanted < kLargestHalf ? wanted : kLargestHalf);
  const float scale = from_f16(half);
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int64_t i = 0; i < n; i++) {
    const float code = x[i] * inverse;
    const float bounded = code > 127.0f ? 127.0f : (code > -127.0f ? code : -127.0f);
    q[i * stride] = static_cast<int8_t>((bounded + kRound) - kRound);
  }
  return half;
}

void store_q8(std::byte* head, int64_t head_dim, int64_t slot, const float* k, const float* v) {
  const KvQ8 kv = KvQ8::view(head, head_dim);
  auto* keys = const_cast<int8_t*>(kv.keys) + slot;
  auto* values = const_cast<int8_t*>(kv.values) + slot * kv.dim;
  auto* key_scales = const_cast<uint16_t*>(kv.key_scales) + slot;
  auto* value_scales = const_cast<uint16_t*>(kv.value_scales) + slot * kv.scales;
  for (int64_t d = 0; d < head_dim; d += kKvScaled) {
    const int64_t n = head_dim - d < kKvScaled ? head_dim - d : kKvScaled, i = d / kKvScaled;
    key_scales[i * kBlockKeys] = store_scaled(k + d, n, keys + d * kBlockKeys, kBlockKeys);
    value_scales[i] = store_scaled(v + d, n, values + d, 1);
  }
}

void load_q8(const std::byte* head, int64_t head_dim, int64_t slot, float* k, float* v) {
  const KvQ8 kv = KvQ8::view(head, head_dim);
  for (int64_t d = 0; d < head_dim; d++) {
    const int64_t i = d / kKvScaled;
    k[d] = static_cast<float>(kv.keys[d * kBlockKeys + slot]) *
           from_f16(kv.key_scales[i * kBlockKeys + slot]);
    v[d] = static_cast<float>(kv.values[slot * kv.dim + d]) *
           from_f16(kv.value_scales[slot * kv.scales + i]);
  }
}

TL_INLINE float same(float x) {
  return x;
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
    case KvFormat::q8_0:
      return attend<KvQ8>(job);
  }
}

void store_kv(KvFormat format, std::byte* head, int64_t head_dim, int64_t slot, const float* k,
              const float* v) {
  switch (format) {
    case KvFormat::f32:
      return store_as<float>(head, head_dim, slot, k, v, same);
    case KvFormat::f16:
      return store_as<uint16_t>(head, head_dim, slot, k, v, to_f16);
    case KvFormat::bf16:
      return store_as<uint16_t>(head, head_dim, slot, k, v, to_bf16);
    case KvFormat::q8_0:
      return store_q8(head, head_dim, slot, k, v);
  }
}

void load_kv(KvFormat format, const std::byte* head, int64_t head_dim, int64_t slot, float* k,
             float* v) {
  switch (format) {
    case KvFormat::f32:
      return load_as<float>(head, head_dim, slot, k, v, same);
    case KvFormat::f16:
      return load_as<uint16_t>(head, head_dim, slot, k, v, from_f16);
    case KvFormat::bf16:
      return load_as<uint16_t>(head, head_dim, slot, k, v, from_bf16);
    case KvFormat::q8_0:
      return load_q8(head, head_dim, slot, k, v);
  }
}

}  // namespace TINYLLAMA_ISA
}  // namespace tinyllama::cpu
