// The operation contract in its plainest form: one loop nest an operation, sums in double, weights
// decoded and not rearranged. It defines what every operation means; backends are tested against
// it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/backend.h"
#include "formats/checkpoint.h"
#include "support/naive_training.h"
#include "tensor/float16.h"
#include "tensor/quant.h"

namespace tinyllama::testing {

// A block of the cache is kKvBlock positions of (keys, values), (n_kv_heads, head_dim) each.
class NaiveBackend : public Backend {
 public:
  std::string name() const override { return "naive"; }

  Buffer alloc(size_t bytes) override { return alloc_host(bytes); }
  void copy_to_host(const std::byte* from, std::byte* to, size_t bytes) override {
    std::memcpy(to, from, bytes);
  }
  void copy_from_host(const std::byte* from, std::byte* to, size_t bytes) override {
    std::memcpy(to, from, bytes);
  }
  void copy(const std::byte* from, std::byte* to, size_t bytes) override {
    std::memmove(to, from, bytes);
  }

  std::unique_ptr<Packed> pack(std::span<const PackPart> parts) override {
    auto packed = std::make_unique<NaivePacked>();
    repack(parts, *packed);
    return packed;
  }

  void repack(std::span<const PackPart> parts, Packed& to) override {
    auto* packed = static_cast<NaivePacked*>(&to);
    packed->rows = 0;
    packed->w.clear();
    packed->cols = parts.front().w.cols;
    for (const PackPart& part : parts) {
      for (int64_t r = 0; r < part.w.rows; r++, packed->rows++) {
        const int64_t stored =
            part.interleaved_dim == 0 ? r : interleaved_row(r, part.interleaved_dim);
        packed->w.resize(packed->w.size() + static_cast<size_t>(packed->cols));
        float* row = &packed->w.back() + 1 - packed->cols;
        decode_row(part.w.dtype, part.w.row(stored), row, packed->cols);
        if (!part.as) continue;
        std::vector<std::byte> other(row_bytes(*part.as, packed->cols));
        encode_row(*part.as, row, other.data(), packed->cols);
        decode_row(*part.as, other.data(), row, packed->cols);
      }
    }
    packed->bytes = packed->w.size() * sizeof(float);
  }

  size_t kv_block_bytes(const KvShape& shape) const override {
    return static_cast<size_t>(kKvBlock) * position_bytes(shape);
  }

  void begin(const Batch& batch, std::span<const float> rope) override {
    batch_ = &batch;
    rope_ = rope;
  }

  void embed(TensorView table, Tensor y) override {
    for (int64_t r = 0; r < y.rows; r++) {
      const int32_t token = batch_->tokens[static_cast<size_t>(r)];
      decode_row(table.dtype, table.row(token), y.row_as<float>(r), y.cols);
    }
  }

  void rms_norm(TensorView x, TensorView w, double eps, Tensor y) override {
    for (int64_t r = 0; r < x.rows; r++) {
      const float* in = x.row_as<float>(r);
      double sum = 0;
      for (int64_t i = 0; i < x.cols; i++) sum += static_cast<double>(in[i]) * in[i];
      const double scale = 1 / std::sqrt(sum / static_cast<double>(x.cols) + eps);
      for (int64_t i = 0; i < x.cols; i++) {
        y.row_as<float>(r)[i] = static_cast<float>(w.row_as<float>(0)[i] * (in[i] * scale));
      }
    }
  }

  void linear(const Packed& packed, TensorView x, Tensor y, bool accumulate) override {
    const auto& w = static_cast<const NaivePacked&>(packed);
    for (int64_t r = 0; r < x.rows; r++) {
      for (int64_t i = 0; i < w.rows; i++) {
        double sum = 0;
        for (int64_t k = 0; k < w.cols; k++) {
          sum += static_cast<double>(w.w[static_cast<size_t>(i * w.cols + k)]) *
                 static_cast<double>(x.row_as<float>(r)[k]);
        }
        float& to = y.row_as<float>(r)[i];
        to = static_cast<float>(accumulate ? to + sum : sum);
      }
    }
  }

  void rope_store(Tensor qkv, int64_t n_heads, const KvLayer& kv) override {
    const int64_t d = kv.shape.head_dim, kv_dim = kv.shape.n_kv_heads * d;
    for (const Segment& segment : batch_->segments) {
      for (int64_t i = 0; i < segment.n_rows; i++) {
        const int64_t r = segment.first_row + i;
        float* q = qkv.row_as<float>(r);
        for (int64_t h = 0; h < n_heads + kv.shape.n_kv_heads; h++) {
          rotate(q + h * d, rope_.data() + r * d, d);
        }
        std::byte* to = position(kv, segment.kv_blocks, segment.past + i);
        encode_row(kv.shape.dtype, q + n_heads * d, to, kv_dim);
        encode_row(kv.shape.dtype, q + n_heads * d + kv_dim, to + position_bytes(kv.shape) / 2,
                   kv_dim);
      }
    }
  }

  void attention(TensorView qkv, int64_t n_heads, const KvLayer& kv, Tensor y,
                 Tensor softmax) override {
    for (const Segment& segment : batch_->segments) {
      for (int64_t i = 0; i < segment.n_rows; i++) {
        const int64_t r = segment.first_row + i;
        attend(qkv.row_as<float>(r), n_heads, kv, segment, segment.past + i, y.row_as<float>(r),
               softmax ? softmax.row_as<float>(r) : nullptr);
      }
    }
  }

  void swiglu(TensorView gate_up, Tensor y) override {
    for (int64_t r = 0; r < y.rows; r++) {
      const float* gate = gate_up.row_as<float>(r);
      for (int64_t i = 0; i < y.cols; i++) {
        const double g = gate[i];
        y.row_as<float>(r)[i] = static_cast<float>(g / (1 + std::exp(-g)) * gate[y.cols + i]);
      }
    }
  }

  void gather_logit_rows(TensorView x, Tensor y) override {
    for (int64_t i = 0; i < y.rows; i++) {
      std::memcpy(y.row(i), x.row(batch_->logit_rows[static_cast<size_t>(i)]),
                  static_cast<size_t>(y.cols) * sizeof(float));
    }
  }

  void move_kv(const KvLayer& kv, std::span<const int32_t> blocks, int64_t from, int64_t to,
               int64_t n, std::span<const float> rope) override {
    const int64_t d = kv.shape.head_dim, kv_dim = kv.shape.n_kv_heads * d;
    std::vector<float> k(static_cast<size_t>(kv_dim));
    for (int64_t i = 0; i < n; i++) {
      const std::byte* source = position(kv, blocks, from + i);
      std::byte* target = position(kv, blocks, to + i);
      decode_row(kv.shape.dtype, source, k.data(), kv_dim);
      for (int64_t h = 0; h < kv.shape.n_kv_heads; h++)
        rotate(&k[static_cast<size_t>(h * d)], rope.data(), d);
      encode_row(kv.shape.dtype, k.data(), target, kv_dim);
      const size_t half = position_bytes(kv.shape) / 2;
      std::memcpy(target + half, source + half, half);
    }
  }

  TrainingOps& training() override { return training_; }

  static size_t position_bytes(const KvShape& shape) {
    return 2 * row_bytes(shape.dtype, shape.n_kv_heads * shape.head_dim);
  }
  // Keys of one cached position; its values follow.
  static std::byte* position(const KvLayer& kv, std::span<const int32_t> blocks, int64_t p) {
    const auto block = static_cast<size_t>(blocks[static_cast<size_t>(p / kKvBlock)]);
    return kv.data + block * kv.block_bytes +
           static_cast<size_t>(p % kKvBlock) * position_bytes(kv.shape);
  }

 private:
  // rope: cos of the d / 2 angles, then sin.
  static void rotate(float* x, const float* rope, int64_t d) {
    const int64_t half = d / 2;
    for (int64_t i = 0; i < half; i++) {
      const double a = x[i], b = x[half + i], c = rope[i], s = rope[half + i];
      x[i] = static_cast<float>(a * c - b * s);
      x[half + i] = static_cast<float>(b * c + a * s);
    }
  }

  static void attend(const float* q, int64_t n_heads, const KvLayer& kv, const Segment& segment,
                     int64_t last, float* y, float* softmax) {
    const int64_t d = kv.shape.head_dim, kv_dim = kv.shape.n_kv_heads * d;
    const auto n = static_cast<size_t>(last + 1);
    std::vector<std::vector<float>> k(n), v(n);
    for (size_t t = 0; t < n; t++) {
      const std::byte* from = position(kv, segment.kv_blocks, static_cast<int64_t>(t));
      k[t].resize(static_cast<size_t>(kv_dim));
      v[t].resize(static_cast<size_t>(kv_dim));
      decode_row(kv.shape.dtype, from, k[t].data(), kv_dim);
      decode_row(kv.shape.dtype, from + position_bytes(kv.shape) / 2, v[t].data(), kv_dim);
    }
    for (int64_t h = 0; h < n_heads; h++) {
      const auto first = static_cast<size_t>(h / (n_heads / kv.shape.n_kv_heads) * d);
      std::vector<double> p(n);
      for (size_t t = 0; t < n; t++) {
        for (size_t i = 0; i < static_cast<size_t>(d); i++) {
          p[t] += static_cast<double>(q[static_cast<size_t>(h * d) + i]) * k[t][first + i];
        }
        p[t] /= std::sqrt(static_cast<double>(d));
      }
      const double top = *std::max_element(p.begin(), p.end());
      double total = 0;
      for (double& x : p) total += x = std::exp(x - top);
      if (softmax != nullptr) {
        softmax[h] = static_cast<float>(top);
        softmax[n_heads + h] = static_cast<float>(total);
      }
      for (size_t i = 0; i < static_cast<size_t>(d); i++) {
        double sum = 0;
        for (size_t t = 0; t < n; t++) sum += p[t] * v[t][first + i];
        y[static_cast<size_t>(h * d) + i] = static_cast<float>(sum / total);
      }
    }
  }

  const Batch* batch_ = nullptr;
  std::span<const float> rope_;
  NaiveTraining training_{batch_, rope_};
};

}  // namespace tinyllama::testing
