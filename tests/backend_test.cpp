// backend/cpu: every operation against plain double-precision loops, for every instruction set,
// data type and awkward shape. Tolerances are derived from the arithmetic each operation is defined
// to do.
#include "backend/backend.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "tensor/float16.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

constexpr double kEps = 0x1.0p-24;  // half an ulp of FP32, relative

std::vector<float> randoms(uint64_t seed, int64_t n, float scale = 1) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); i++) {
    const double sum = uniform_open(hash_key(seed, i)) + uniform_open(hash_key(seed, i, 1)) +
                       uniform_open(hash_key(seed, i, 2)) - 1.5;
    x[i] = static_cast<float>(2 * sum) * scale;
  }
  return x;
}

Tensor floats(std::vector<float>& x, int64_t rows, int64_t cols) {
  return {reinterpret_cast<std::byte*>(x.data()), DType::f32, rows, cols};
}

struct Encoded {
  std::vector<std::byte> bytes;
  std::vector<float> values;  // what the bytes decode to
  TensorView view;
};

Encoded encode(DType dtype, const std::vector<float>& x, int64_t rows, int64_t cols) {
  Encoded e;
  const size_t stride = row_bytes(dtype, cols);
  e.bytes.resize(stride * static_cast<size_t>(rows));
  e.values.resize(x.size());
  for (int64_t r = 0; r < rows; r++) {
    encode_row(dtype, x.data() + r * cols, e.bytes.data() + static_cast<size_t>(r) * stride, cols);
    decode_row(dtype, e.bytes.data() + static_cast<size_t>(r) * stride, e.values.data() + r * cols,
               cols);
  }
  e.view = {e.bytes.data(), dtype, rows, cols};
  return e;
}

// The activations as the product of `dtype` sees them: as they are, rounded to BF16, or int8 with
// one scale per 32 values.
std::vector<float> seen_by(DType dtype, const std::vector<float>& x) {
  std::vector<float> seen = x;
  if (dtype == DType::bf16)
    for (float& v : seen) v = bf16_to_f32(f32_to_bf16(v));
  if (!traits(dtype).quantized) return seen;
  for (size_t b = 0; b < x.size(); b += kBlock) {
    float largest = 0;
    for (size_t i = b; i < b + kBlock; i++) largest = std::max(largest, std::abs(x[i]));
    const float scale = largest / 127.0f, inverse = largest > 0 ? 127.0f / largest : 0.0f;
    for (size_t i = b; i < b + kBlock; i++) seen[i] = std::nearbyintf(x[i] * inverse) * scale;
  }
  return seen;
}

class BackendTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend(int threads = 2) const {
    return make_cpu({threads, GetParam()});
  }
};

TEST_P(BackendTest, LinearMatchesDecodedWeightsInDoublePrecision) {
  struct Shape {
    int64_t rows, cols, n;
  };
  const auto b = backend();
  for (int type = 0; type < kDTypeCount; type++) {
    const auto dtype = static_cast<DType>(type);
    const int64_t block = traits(dtype).block_size;
    for (const Shape shape : {Shape{1, 32, 1},
                              {16, 64, 2},
                              {33, 96, 3},
                              {100, 256, 5},
                              {70, 2048, 7},
                              {17, 5632, 16},
                              {50, 768, 23},
                              {129, 43, 4}}) {
      if (shape.cols % block != 0) continue;
      const auto [rows, cols, n] = shape;
      const Encoded w = encode(dtype, randoms(1, rows * cols, 0.05f), rows, cols);
      std::vector<float> x = randoms(2, n * cols), y = randoms(3, n * rows);
      const std::vector<float> before = y, seen = seen_by(dtype, x);
      const PackPart part = {w.view, 0};
      const auto packed = b->pack({&part, 1});
      for (const bool accumulate : {true, false}) {
        if (accumulate) {
          y = before;
        } else {
          y.assign(y.size(), std::nanf(""));
        }
        b->linear(*packed, floats(x, n, cols), floats(y, n, rows), accumulate);
        for (int64_t c = 0; c < n; c++) {
          for (int64_t r = 0; r < rows; r++) {
            double sum = accumulate ? static_cast<double>(before[static_cast<size_t>(c * rows + r)])
                                    : 0,
                   magnitude = 0;
            for (int64_t k = 0; k < cols; k++) {
              const double term = static_cast<double>(w.values[static_cast<size_t>(r * cols + k)]) *
                                  static_cast<double>(seen[static_cast<size_t>(c * cols + k)]);
              sum += term;
              magnitude += std::abs(term);
            }
            // A chain of at most `cols` fused steps (two roundings each where there is no fused
            // one), plus the rounding of decoded weights and scales: at most 2 cols + 8 roundings
            // of partial sums that never exceed `magnitude`; in practice the errors cancel to about
            // its square root.
            const double bound = 8 * std::sqrt(2.0 * static_cast<double>(cols) + 8) * kEps *
                                 (magnitude + std::abs(sum));
            ASSERT_NEAR(y[static_cast<size_t>(c * rows + r)], sum, bound)
                << traits(dtype).name << " rows " << rows << " cols " << cols << " column " << c
                << " row " << r;
          }
        }
      }
    }
  }
}

TEST_P(BackendTest, PackJoinsPartsOfDifferentTypesAndOrders) {
  const auto b = backend();
  const int64_t cols = 256, dim = 16;
  const Encoded first = encode(DType::q4_k, randoms(1, 48 * cols, 0.1f), 48, cols);
  const Encoded second = encode(DType::q6_k, randoms(2, 20 * cols, 0.1f), 20, cols);
  const PackPart joined[] = {{first.view, dim}, {second.view, 0}};
  const auto packed = b->pack(joined);
  ASSERT_EQ(packed->rows, 68);
  std::vector<float> x = randoms(3, 2 * cols), y(2 * 68), a(2 * 48), c(2 * 20);
  b->linear(*packed, floats(x, 2, cols), floats(y, 2, 68), false);
  const PackPart parts[] = {{first.view, 0}, {second.view, 0}};
  b->linear(*b->pack({parts, 1}), floats(x, 2, cols), floats(a, 2, 48), false);
  b->linear(*b->pack({parts + 1, 1}), floats(x, 2, cols), floats(c, 2, 20), false);
  for (size_t column = 0; column < 2; column++) {
    for (size_t r = 0; r < 48; r++) {
      // Half-rotation row r of a head of 16 stands at 2r (first half) or 2(r - 8) + 1 in the
      // interleaved file.
      const size_t in_head = r % 16,
                   source = r - in_head + (in_head < 8 ? 2 * in_head : 2 * (in_head - 8) + 1);
      EXPECT_EQ(y[column * 68 + r], a[column * 48 + source]);
    }
    for (size_t r = 0; r < 20; r++) EXPECT_EQ(y[column * 68 + 48 + r], c[column * 20 + r]);
  }
}

TEST_P(BackendTest, PointwiseOperations) {
  const auto b = backend();
  for (const int64_t d : {8, 64, 80, 172, 2048}) {
    const int64_t n = 3;
    std::vector<float> x = randoms(1, n * d, 3), w = randoms(2, d),
                       y(static_cast<size_t>(n * d), std::nanf(""));
    b->rms_norm(floats(x, n, d), floats(w, 1, d), 1e-5, floats(y, n, d));
    for (int64_t r = 0; r < n; r++) {
      double sum = 0;
      for (int64_t i = 0; i < d; i++)
        sum += std::pow(static_cast<double>(x[static_cast<size_t>(r * d + i)]), 2);
      const double scale = 1 / std::sqrt(sum / static_cast<double>(d) + 1e-5);
      for (int64_t i = 0; i < d; i++) {
        const double want = static_cast<double>(w[static_cast<size_t>(i)]) *
                            static_cast<double>(x[static_cast<size_t>(r * d + i)]) * scale;
        ASSERT_NEAR(y[static_cast<size_t>(r * d + i)], want, 40 * kEps * std::abs(want)) << d;
      }
    }
    std::vector<float> gate_up = randoms(4, n * 2 * d, 20);
    gate_up[0] = -200;  // silu must underflow to zero, not to NaN
    b->swiglu(floats(gate_up, n, 2 * d), floats(y, n, d));
    for (int64_t r = 0; r < n; r++) {
      for (int64_t i = 0; i < d; i++) {
        const double g = gate_up[static_cast<size_t>(r * 2 * d + i)],
                     u = gate_up[static_cast<size_t>(r * 2 * d + d + i)];
        const double want = g / (1 + std::exp(-g)) * u;
        ASSERT_NEAR(y[static_cast<size_t>(r * d + i)], want, 16 * kEps * std::abs(want) + 1e-30)
            << g;
      }
    }
  }
}

// One layer's cache over a scattered block table, filled through rope_store with the identity
// rotation.
struct CacheFixture {
  CacheFixture(Backend& backend, KvShape kv_shape, int64_t positions) : shape(kv_shape) {
    const int64_t n = (positions + kKvBlock - 1) / kKvBlock;
    block_bytes = backend.kv_block_bytes(shape);
    memory = backend.alloc(block_bytes * static_cast<size_t>(n + 2));
    std::memset(memory.data(), 0xff, memory.size());  // NaN in every float type: must never be read
    for (int64_t i = 0; i < n; i++) table.push_back(static_cast<int32_t>((i * 7 + 3) % n + 1));
    if (n % 7 == 0)
      for (int64_t i = 0; i < n; i++) table[static_cast<size_t>(i)] = static_cast<int32_t>(n - i);
  }
  KvLayer layer() const { return {memory.data(), block_bytes, shape}; }

  KvShape shape;
  size_t block_bytes;
  Buffer memory;
  std::vector<int32_t> table;
};

// Feature d of one position's head of `dim` features as the cache rounds it.
float rounded(DType dtype, const float* head, int64_t dim, int64_t d) {
  const float x = head[d];
  if (dtype == DType::f16) return f16_to_f32(f32_to_f16(x));
  if (dtype == DType::bf16) return bf16_to_f32(f32_to_bf16(x));
  if (dtype != DType::q8_0) return x;
  float largest = 0;
  for (int64_t i = d / 32 * 32; i < std::min(dim, d / 32 * 32 + 32); i++)
    largest = std::max(largest, std::fabs(head[i]));
  const float scale = f16_to_f32(f32_to_f16(largest / 127.0f));
  if (scale == 0) return 0;
  return std::clamp(std::nearbyint(x * (1.0f / scale)), -127.0f, 127.0f) * scale;
}

TEST_P(BackendTest, AttentionOverThePagedCache) {
  struct Shape {
    int64_t heads, kv_heads, dim, past, rows;
  };
  const auto b = backend();
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::q8_0}) {
    for (const Shape s : {Shape{4, 2, 16, 0, 1},
                          {4, 2, 16, 0, 70},
                          {8, 1, 64, 500, 30},
                          {2, 2, 8, 63, 2},
                          {3, 3, 80, 130, 5},
                          {8, 1, 64, 1100, 1},
                          {4, 4, 32, 0, 130}}) {
      const int64_t width = (s.heads + 2 * s.kv_heads) * s.dim, n = s.past + s.rows;
      CacheFixture cache(*b, {s.kv_heads, s.dim, dtype}, n);
      std::vector<float> qkv = randoms(7, n * width), rope(static_cast<size_t>(n * s.dim), 0);
      for (int64_t r = 0; r < n; r++)
        std::fill_n(rope.begin() + r * s.dim, s.dim / 2, 1.0f);  // cos 1, sin 0
      Batch fill;
      fill.tokens.assign(static_cast<size_t>(n), 0);
      fill.segments = {{0, n, 0, cache.table, {}, 1}};
      b->begin(fill, rope);
      b->rope_store(floats(qkv, n, width), s.heads, cache.layer());
      Batch batch;
      batch.tokens.assign(static_cast<size_t>(s.rows), 0);
      batch.segments = {{0, s.rows, s.past, cache.table, {}, 1}};
      b->begin(batch, rope);
      std::vector<float> y(static_cast<size_t>(s.rows * s.heads * s.dim), std::nanf(""));
      Tensor queries = floats(qkv, n, width).rows_slice(s.past, s.rows);
      b->attention(queries, s.heads, cache.layer(), floats(y, s.rows, s.heads * s.dim), {});
      for (int64_t r = 0; r < s.rows; r++) {
        for (int64_t h = 0; h < s.heads; h++) {
          const int64_t kv_head = h / (s.heads / s.kv_heads), keys = s.past + r + 1;
          const auto at = [&](int64_t row, int64_t head, int64_t d) {
            return static_cast<double>(qkv[static_cast<size_t>(row * width + head * s.dim + d)]);
          };
          const auto cached = [&](int64_t row, int64_t head, int64_t d) {
            const float* features = qkv.data() + row * width + head * s.dim;
            return static_cast<double>(rounded(dtype, features, s.dim, d));
          };
          std::vector<double> p(static_cast<size_t>(keys));
          double max = -1e300, sum = 0;
          for (int64_t j = 0; j < keys; j++) {
            double dot = 0;
            for (int64_t d = 0; d < s.dim; d++)
              dot += at(s.past + r, h, d) * cached(j, s.heads + kv_head, d);
            p[static_cast<size_t>(j)] = dot / std::sqrt(static_cast<double>(s.dim));
            max = std::max(max, p[static_cast<size_t>(j)]);
          }
          for (double& v : p) sum += v = std::exp(v - max);
          for (int64_t d = 0; d < s.dim; d++) {
            double want = 0;
            for (int64_t j = 0; j < keys; j++)
              want +=
                  p[static_cast<size_t>(j)] / sum * cached(j, s.heads + s.kv_heads + kv_head, d);
            // Scores of magnitude up to ~10 carry dim roundings each; exp turns that absolute error
            // into a relative one of the weights, and the values are below 4.
            const double bound = 4 *
                                 (8 * std::sqrt(static_cast<double>(s.dim)) +
                                  std::sqrt(static_cast<double>(keys)) + 8) *
                                 10 * kEps;
            ASSERT_NEAR(y[static_cast<size_t>((r * s.heads + h) * s.dim + d)], want, bound)
                << traits(dtype).name << " heads " << s.heads << " dim " << s.dim << " row " << r;
          }
        }
      }
    }
  }
}

TEST_P(BackendTest, RopeRotatesHalvesAndMoveKvTurnsKeys) {
  const auto b = backend();
  const int64_t dim = 16, heads = 2;
  CacheFixture cache(*b, {1, dim, DType::f32}, 8);
  const int64_t width = (heads + 2) * dim, n = 3;
  std::vector<float> qkv = randoms(5, n * width), rope(static_cast<size_t>(n * dim));
  const auto angle = [&](int64_t position, int64_t i) {
    return static_cast<double>(position) *
           std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
  };
  for (int64_t r = 0; r < n; r++) {
    for (int64_t i = 0; i < dim / 2; i++) {
      rope[static_cast<size_t>(r * dim + i)] = static_cast<float>(std::cos(angle(r + 4, i)));
      rope[static_cast<size_t>(r * dim + dim / 2 + i)] =
          static_cast<float>(std::sin(angle(r + 4, i)));
    }
  }
  const std::vector<float> original = qkv;
  Batch batch;
  batch.tokens.assign(n, 0);
  batch.segments = {{0, n, 4, cache.table, {}, 1}};
  b->begin(batch, rope);
  b->rope_store(floats(qkv, n, width), heads, cache.layer());
  for (int64_t r = 0; r < n; r++) {
    for (int64_t h = 0; h < heads; h++) {
      for (int64_t i = 0; i < dim / 2; i++) {
        const auto at = static_cast<size_t>(r * width + h * dim + i);
        const double x = original[at], z = original[at + dim / 2], a = angle(r + 4, i);
        EXPECT_NEAR(qkv[at], x * std::cos(a) - z * std::sin(a), 1e-5);
        EXPECT_NEAR(qkv[at + dim / 2], z * std::cos(a) + x * std::sin(a), 1e-5);
      }
    }
  }
  // Positions 4..6 move down by 4: a query of ones against one key then reads the key rotated to
  // 0..2.
  std::vector<float> turn(dim);
  for (int64_t i = 0; i < dim / 2; i++) {
    turn[static_cast<size_t>(i)] = static_cast<float>(std::cos(angle(-4, i)));
    turn[static_cast<size_t>(dim / 2 + i)] = static_cast<float>(std::sin(angle(-4, i)));
  }
  b->move_kv(cache.layer(), cache.table, 4, 0, n, turn);
  // With one visible key the output is its value; with keys 0 and 1 visible the weights tell key
  // 1's rotation.
  std::vector<float> query(static_cast<size_t>(2 * width)), y(static_cast<size_t>(2 * heads * dim));
  for (int64_t i = 0; i < 2 * width; i++)
    query[static_cast<size_t>(i)] = original[static_cast<size_t>(i)];
  Batch two;
  two.tokens.assign(2, 0);
  two.segments = {{0, 2, 0, cache.table, {}, 1}};
  b->begin(two, rope);
  b->attention(floats(query, 2, width), heads, cache.layer(), floats(y, 2, heads * dim), {});
  for (int64_t d = 0; d < dim; d++)
    EXPECT_EQ(y[static_cast<size_t>(d)], original[static_cast<size_t>((heads + 1) * dim + d)]);
  for (int64_t h = 0; h < heads; h++) {
    double score[2] = {0, 0};
    for (int64_t j = 0; j < 2; j++) {
      for (int64_t i = 0; i < dim / 2; i++) {
        const auto key = static_cast<size_t>(j * width + heads * dim + i),
                   q = static_cast<size_t>(width + h * dim + i);
        const double a = angle(j, i), k0 = original[key], k1 = original[key + dim / 2];
        score[j] += query[q] * (k0 * std::cos(a) - k1 * std::sin(a)) +
                    query[q + dim / 2] * (k1 * std::cos(a) + k0 * std::sin(a));
      }
    }
    const double p = 1 / (1 + std::exp((score[0] - score[1]) / 4.0));
    for (int64_t d = 0; d < dim; d++) {
      const double v0 = original[static_cast<size_t>((heads + 1) * dim + d)];
      const double v1 = original[static_cast<size_t>(width + (heads + 1) * dim + d)];
      EXPECT_NEAR(y[static_cast<size_t>((heads + h) * dim + d)], v0 * (1 - p) + v1 * p, 1e-5);
    }
  }
}

TEST_P(BackendTest, EmbedDecodesRowsOfEveryType) {
  const auto b = backend();
  const int64_t vocab = 5, d = 256;
  for (int type = 0; type < kDTypeCount; type++) {
    const Encoded table = encode(static_cast<DType>(type), randoms(9, vocab * d), vocab, d);
    Batch batch;
    batch.tokens = {4, 0, 4};
    batch.segments = {{0, 3, 0, {}, {}, 1}};
    b->begin(batch, {});
    std::vector<float> y(3 * d);
    b->embed(table.view, floats(y, 3, d));
    for (size_t r = 0; r < 3; r++)
      EXPECT_EQ(std::memcmp(&y[r * d], &table.values[static_cast<size_t>(batch.tokens[r]) * d],
                            d * sizeof(float)),
                0);
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, BackendTest, testing::ValuesIn(cpu_isas()),
                         [](const auto& test) { return test.param; });

TEST(Isa, UnknownNamesThoseItHas) {
  try {
    make_cpu({1, "sse9"});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("scalar"), std::string::npos);
  }
}

TEST(KvType, QuantizedTypesAreRefused) {
  EXPECT_THROW(make_cpu({1, ""})->kv_block_bytes({1, 64, DType::q4_0}), Error);
}

}  // namespace
}  // namespace tinyllama
