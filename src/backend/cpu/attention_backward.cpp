// The gradient of attention, tiled (Dao et al. 2022): for each block of keys and each block of
// queries that sees it, probabilities are computed again from the scores and the softmax sums that
// the forward pass kept. Every element is summed over blocks in their order.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/product.h"

namespace tinyllama::cpu {
namespace {

constexpr int64_t kBlock = 64;  // queries, and keys

// c (kBlock rows) = or += a b.
TL_INLINE void multiply(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t n,
                        int64_t k, float* c, bool accumulate) {
  for (int64_t j = 0; j < n; j += kProductCols)
    for (int64_t i = 0; i < kBlock; i += kProductRows)
      product_tile(a + i * a_row, a_row, a_depth, b + j, n, k, c + i * n + j, n, accumulate);
}

// Rows [first, first + kBlock) of x times `scale`, padded with zeros: to (kBlock, padded).
void load_rows(const float* x, int64_t stride, int64_t first, int64_t n_rows, int64_t dim,
               int64_t padded, float scale, float* to) {
  memset(to, 0, static_cast<size_t>(kBlock * padded) * sizeof(float));
  for (int64_t r = 0; r < kBlock && first + r < n_rows; r++)
    for (int64_t d = 0; d < dim; d += kLanes)
      store_n(to + r * padded + d,
              mul_f(load_n(x + (first + r) * stride + d, dim - d), set_f(scale)), dim - d);
}

// The same the other way round: to (dim, kBlock).
void load_transposed(const float* x, int64_t stride, int64_t first, int64_t n_rows, int64_t dim,
                     float* to) {
  memset(to, 0, static_cast<size_t>(kBlock * dim) * sizeof(float));
  for (int64_t r = 0; r < kBlock && first + r < n_rows; r++)
    for (int64_t d = 0; d < dim; d++) to[d * kBlock + r] = x[(first + r) * stride + d];
}

void store_rows(const float* from, int64_t padded, int64_t first, int64_t n_rows, int64_t dim,
                int64_t stride, float* x) {
  for (int64_t r = 0; r < kBlock && first + r < n_rows; r++)
    for (int64_t d = 0; d < dim; d += kLanes)
      store_n(x + (first + r) * stride + d, load_n(from + r * padded + d, dim - d), dim - d);
}

// Scores become probabilities, dp (their gradients) those of the scores: p (dp - delta).
void softmax_backward(const AttentionBackwardJob& job, int64_t queries, int64_t keys,
                      const float* delta, float* p, float* dp) {
  for (int64_t r = 0; r < kBlock; r++, p += kBlock, dp += kBlock) {
    const int64_t row = queries + r;
    int64_t seen = row < job.n_rows ? row + 1 - keys : 0;  // keys of this block that the row sees
    seen = seen < kBlock ? seen : kBlock;
    if (seen > 0) {
      const F largest = set_f(job.largest[row * job.softmax_stride]);
      const F factor = set_f(1 / job.sums[row * job.softmax_stride]);
      const F mean = set_f(delta[row]);
      for (int64_t j = 0; j < kBlock; j += kLanes) {
        const F probability = mul_f(exp_f(sub_f(load_f(p + j), largest)), factor);
        store_f(p + j, probability);
        store_f(dp + j, mul_f(probability, sub_f(load_f(dp + j), mean)));
      }
    }
    for (int64_t j = seen; j < kBlock; j++) p[j] = dp[j] = 0;
  }
}

// delta[r] = sum over features of y dy, which is that over keys of p dp.
void fill_delta(const AttentionBackwardJob& job, float* delta) {
  for (int64_t r = 0; r < job.n_rows; r++) {
    F sum = set_f(0);
    for (int64_t d = 0; d < job.head_dim; d += kLanes)
      sum = fma_f(load_n(job.y + r * job.y_stride + d, job.head_dim - d),
                  load_n(job.dy + r * job.y_stride + d, job.head_dim - d), sum);
    delta[r] = reduce_add_f(sum);
  }
}

}  // namespace

void TINYLLAMA_ISA::attention_backward(const AttentionBackwardJob& job) {
  const int64_t dim = job.head_dim, padded = padded_product(dim), n = job.n_rows;
  float* delta = job.scratch;                         // (n_rows)
  float* k_transposed = delta + (n + 15) / 16 * 16;   // (dim, kBlock)
  float* v_transposed = k_transposed + kBlock * dim;  // (dim, kBlock)
  float* k = v_transposed + kBlock * dim;             // (kBlock, padded) and so on
  float* q = k + kBlock * padded;
  float* dy = q + kBlock * padded;
  float* dk = dy + kBlock * padded;
  float* dv = dk + kBlock * padded;
  float* dq = dv + kBlock * padded;
  float* p = dq + kBlock * padded;  // (queries, keys)
  float* dp = p + kBlock * kBlock;  // (queries, keys)
  const auto scale = static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(dim)));
  fill_delta(job, delta);
  for (int64_t keys = 0; keys < n; keys += kBlock) {
    load_transposed(job.k, job.qkv_stride, keys, n, dim, k_transposed);
    load_transposed(job.v, job.qkv_stride, keys, n, dim, v_transposed);
    load_rows(job.k, job.qkv_stride, keys, n, dim, padded, scale, k);
    for (int64_t queries = keys; queries < n; queries += kBlock) {
      const bool first = queries == keys;
      load_rows(job.q, job.qkv_stride, queries, n, dim, padded, scale, q);
      load_rows(job.dy, job.y_stride, queries, n, dim, padded, 1, dy);
      multiply(q, padded, 1, k_transposed, kBlock, dim, p, false);
      multiply(dy, padded, 1, v_transposed, kBlock, dim, dp, false);
      softmax_backward(job, queries, keys, delta, p, dp);
      multiply(p, 1, kBlock, dy, padded, kBlock, dv, !first);
      multiply(dp, 1, kBlock, q, padded, kBlock, dk, !first);
      if (keys > 0) load_rows(job.dq, job.dq_stride, queries, n, dim, padded, 1, dq);
      multiply(dp, kBlock, 1, k, padded, kBlock, dq, keys > 0);
      store_rows(dq, padded, queries, n, dim, job.dq_stride, job.dq);
    }
    store_rows(dk, padded, keys, n, dim, dim, job.dk);
    store_rows(dv, padded, keys, n, dim, dim, job.dv);
  }
}

}  // namespace tinyllama::cpu
