#include "backend/cpu/training.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/layout.h"
#include "backend/cpu/products.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/training_kernels.h"
#include "backend/cpu/weights.h"
#include "base/error.h"

namespace tinyllama::cpu {
namespace {

constexpr int64_t kSerialWork = 32768;          // floats of other operations, likewise
constexpr int64_t kSerialProducts = 64 * 1024;  // multiply-adds not worth a join
constexpr int64_t kStrip = 64;                  // columns that one thread sums over all rows
constexpr int64_t kChunk = 1 << 16;             // floats of one item of a flat operation

int64_t stride_of(const TensorView& x) {
  return static_cast<int64_t>(x.row_stride / sizeof(float));
}

class CpuTraining final : public TrainingOps {
 public:
  CpuTraining(const Kernels& kernels, ThreadPool& pool, const Batch* const& batch,
              const std::span<const float>& rope)
      : base_(kernels),
        k_(*kernels.training),
        pool_(pool),
        products_(kernels, pool),
        batch_(batch),
        rope_(rope),
        scratch_(static_cast<size_t>(pool.size())) {}

  void linear_input(const Packed& packed, TensorView dy, Tensor dx) override {
    const auto& w = static_cast<const CpuPacked&>(packed);
    TL_CHECK(dy.cols == w.rows && dx.cols == w.cols && dy.rows == dx.rows);
    for (const PackedPart& part : w.parts) {
      ProductJob job = {};
      job.a = dy.row_as<float>(0) + part.first_row;
      job.a_row = stride_of(dy);
      job.a_depth = 1;
      job.tiles = part.tiles;
      job.tile_bytes = tile_bytes(part.format, w.cols);
      job.format = part.format;
      job.m = dy.rows;
      job.n = w.cols;
      job.k = part.rows;
      job.accumulate = part.first_row > 0;
      product(part.format, job, dx);
    }
  }

  void linear_weight(const Packed& packed, TensorView dy, TensorView x, Tensor dw) override {
    const auto& w = static_cast<const CpuPacked&>(packed);
    TL_CHECK(dy.rows == x.rows && dy.cols == w.rows && x.cols == w.cols);
    TL_CHECK(dw.rows == w.rows && dw.cols == w.cols);
    for (const PackedPart& part : w.parts) {
      ProductJob job = {};
      job.a = dy.row_as<float>(0) + part.first_row;
      job.a_row = 1;
      job.a_depth = stride_of(dy);
      job.b = x.row_as<float>(0);
      job.b_stride = stride_of(x);
      job.m = part.rows;
      job.n = w.cols;
      job.k = x.rows;
      job.accumulate = true;
      product(part.format, job, dw.rows_slice(part.first_row, part.rows));
    }
  }

  void rms_norm_backward(TensorView x, TensorView w, double eps, TensorView dy, Tensor dx,
                         Tensor dw) override {
    float* scales = shared_.floats(x.rows);
    for_items(x.rows, x.cols, [&](int64_t r) {
      scales[r] = k_.rms_norm_backward(x.row_as<float>(r), w.row_as<float>(0), eps,
                                       dy.row_as<float>(r), x.cols, dx.row_as<float>(r));
    });
    for_strips(x.cols, x.rows, [&](int64_t first, int64_t n) {
      k_.norm_weight_backward(x.row_as<float>(0) + first, stride_of(x), dy.row_as<float>(0) + first,
                              stride_of(dy), scales, x.rows, n, dw.row_as<float>(0) + first);
    });
  }

  void swiglu_backward(TensorView dy, Tensor gate_up) override {
    for_items(dy.rows, dy.cols, [&](int64_t r) {
      float* gate = gate_up.row_as<float>(r);
      k_.swiglu_backward(dy.row_as<float>(r), dy.cols, gate, gate + dy.cols);
    });
  }

  void attention_backward(TensorView qkv, int64_t n_heads, const KvShape& shape, TensorView y,
                          TensorView softmax, TensorView dy, Tensor dqkv) override {
    const int64_t rows = qkv.rows, dim = shape.head_dim, group = n_heads / shape.n_kv_heads;
    const int64_t kv_dim = shape.n_kv_heads * dim;
    int64_t longest = 0, products = 0;
    for (const Segment& segment : batch_->segments) {
      TL_CHECK(segment.past == 0);
      longest = std::max(longest, segment.n_rows);
      products += segment.n_rows * segment.n_rows * n_heads * dim;
    }
    float* dk = shared_.floats(2 * rows * n_heads * dim);  // of each query head: (n_heads, rows,
    float* dv = dk + rows * n_heads * dim;                 // head_dim)
    const auto one_head = [&](int64_t i, int thread) {
      const Segment& segment = batch_->segments[static_cast<size_t>(i / n_heads)];
      const int64_t head = i % n_heads, row = segment.first_row;
      AttentionBackwardJob job = {};
      job.n_rows = segment.n_rows;
      job.head_dim = dim;
      job.q = qkv.row_as<float>(row) + head * dim;
      job.k = qkv.row_as<float>(row) + (n_heads + head / group) * dim;
      job.v = job.k + kv_dim;
      job.qkv_stride = stride_of(qkv);
      job.y = y.row_as<float>(row) + head * dim;
      job.dy = dy.row_as<float>(row) + head * dim;
      job.y_stride = stride_of(y);
      TL_CHECK(stride_of(dy) == job.y_stride);
      job.largest = softmax.row_as<float>(row) + head;
      job.sums = job.largest + n_heads;
      job.softmax_stride = stride_of(softmax);
      job.dq = dqkv.row_as<float>(row) + head * dim;
      job.dq_stride = stride_of(dqkv);
      job.dk = dk + (head * rows + row) * dim;
      job.dv = dv + (head * rows + row) * dim;
      job.scratch =
          scratch_[static_cast<size_t>(thread)].floats(attention_backward_scratch(longest, dim));
      k_.attention_backward(job);
    };
    const auto n_jobs = static_cast<int64_t>(batch_->segments.size()) * n_heads;
    if (products <= kSerialProducts) {
      for (int64_t i = 0; i < n_jobs; i++) one_head(i, 0);
    } else {
      pool_.for_each(n_jobs, one_head);
    }
    // Heads that share keys and values are added up, and q and k turned back.
    fill_turn_back(dim);
    for_items(rows, (n_heads + 2 * group) * dim, [&](int64_t r) {
      float* heads = dqkv.row_as<float>(r);
      std::memset(heads + n_heads * dim, 0, static_cast<size_t>(2 * kv_dim) * sizeof(float));
      for (int64_t head = 0; head < n_heads; head++) {
        float* to = heads + (n_heads + head / group) * dim;
        k_.add(dk + (head * rows + r) * dim, dim, to);
        k_.add(dv + (head * rows + r) * dim, dim, to + kv_dim);
      }
      const float* cos = turn_back_.data() + r * dim;
      for (int64_t head = 0; head < n_heads + shape.n_kv_heads; head++)
        base_.rope(heads + head * dim, cos, cos + dim / 2, dim);
    });
  }

  void embed_backward(TensorView dy, Tensor dtable) override {
    for_strips(dy.cols, dy.rows, [&](int64_t first, int64_t n) {
      for (int64_t r = 0; r < dy.rows; r++) {
        const int32_t token = batch_->tokens[static_cast<size_t>(r)];
        k_.add(dy.row_as<float>(r) + first, n, dtable.row_as<float>(token) + first);
      }
    });
  }

  void cross_entropy(Tensor logits, std::span<const int32_t> targets, double scale,
                     Tensor losses) override {
    TL_CHECK(static_cast<int64_t>(targets.size()) == logits.rows && losses.cols == logits.rows);
    for_items(logits.rows, logits.cols, [&](int64_t r) {
      float* x = logits.row_as<float>(r);
      float& loss = losses.row_as<float>(0)[r];
      const int32_t target = targets[static_cast<size_t>(r)];
      if (target == kIgnoredTarget) {
        std::memset(x, 0, row_bytes(DType::f32, logits.cols));
        loss = 0;
        return;
      }
      TL_CHECK(target >= 0 && target < logits.cols);
      const float own = x[target];
      float largest = 0;
      const double sum = k_.exponentials(x, logits.cols, &largest);
      loss = static_cast<float>(std::log(sum) + static_cast<double>(largest) -
                                static_cast<double>(own));
      k_.scale(x, logits.cols, static_cast<float>(scale / sum));
      x[target] -= static_cast<float>(scale);
    });
  }

  void adamw(const AdamWStep& s, TensorView gradient, Tensor w, Tensor m, Tensor v) override {
    TL_CHECK(gradient.contiguous() && w.contiguous() && m.contiguous() && v.contiguous());
    TL_CHECK(gradient.elements() == w.elements() && m.elements() == w.elements() &&
             v.elements() == w.elements());
    const auto n = static_cast<double>(s.step);
    AdamWFactors f = {};
    f.gradient = static_cast<float>(s.gradient_scale);
    f.keep = static_cast<float>(1 - s.lr * s.weight_decay);
    f.beta1 = static_cast<float>(s.beta1);
    f.beta2 = static_cast<float>(s.beta2);
    f.rest1 = static_cast<float>(1 - s.beta1);
    f.rest2 = static_cast<float>(1 - s.beta2);
    f.denominator = static_cast<float>(1 / std::sqrt(1 - std::pow(s.beta2, n)));
    f.eps = static_cast<float>(s.eps);
    f.rate = static_cast<float>(s.lr / (1 - std::pow(s.beta1, n)));
    for_chunks(w.elements(), [&](int64_t first, int64_t count) {
      k_.adamw(f, gradient.row_as<float>(0) + first, count, w.row_as<float>(0) + first,
               m.row_as<float>(0) + first, v.row_as<float>(0) + first);
    });
  }

  double sum_of_squares(TensorView x) override {
    TL_CHECK(x.contiguous());
    std::vector<double> parts(static_cast<size_t>((x.elements() + kChunk - 1) / kChunk));
    for_chunks(x.elements(), [&](int64_t first, int64_t count) {
      parts[static_cast<size_t>(first / kChunk)] =
          k_.sum_of_squares(x.row_as<float>(0) + first, count);
    });
    double sum = 0;
    for (const double part : parts) sum += part;
    return sum;
  }

  void clear(Tensor x) override {
    TL_CHECK(x.contiguous());
    for_chunks(x.elements(), [&](int64_t first, int64_t count) {
      std::memset(x.row_as<float>(0) + first, 0, static_cast<size_t>(count) * sizeof(float));
    });
  }

 private:
  // In the arithmetic of weights of `format`.
  void product(Format format, const ProductJob& job, Tensor c) {
    if (format == Format::f32) return products_.fp32(job, c);
    if (format == Format::bf16) return products_.bf16(job, c);
    fail(fmt::format("[training] weights of type {} have no gradient: want f32 or bf16",
                     traits(static_cast<DType>(format)).name));
  }

  template <class Body>
  void for_items(int64_t n, int64_t floats_each, const Body& body) {
    if (n * floats_each <= kSerialWork) {
      for (int64_t i = 0; i < n; i++) body(i);
    } else {
      pool_.for_each(n, body);
    }
  }
  // body(first, n) for strips of columns, each over all rows.
  template <class Body>
  void for_strips(int64_t cols, int64_t rows, const Body& body) {
    for_items((cols + kStrip - 1) / kStrip, kStrip * rows, [&](int64_t strip) {
      body(strip * kStrip, std::min(kStrip, cols - strip * kStrip));
    });
  }
  template <class Body>
  void for_chunks(int64_t n, const Body& body) {
    for_items((n + kChunk - 1) / kChunk, kChunk,
              [&](int64_t chunk) { body(chunk * kChunk, std::min(kChunk, n - chunk * kChunk)); });
  }

  // cos and -sin of every row's angles.
  void fill_turn_back(int64_t dim) {
    turn_back_.assign(rope_.begin(), rope_.end());
    for (size_t i = 0; i < turn_back_.size(); i++)
      if (static_cast<int64_t>(i) % dim >= dim / 2) turn_back_[i] = -turn_back_[i];
  }

  const Kernels& base_;
  const TrainingKernels& k_;
  ThreadPool& pool_;
  Products products_;
  const Batch* const& batch_;
  const std::span<const float>& rope_;
  std::vector<Scratch> scratch_;  // per thread
  Scratch shared_;
  std::vector<float> turn_back_;
};

}  // namespace

std::unique_ptr<TrainingOps> make_training(const Kernels& kernels, ThreadPool& pool,
                                           const Batch* const& batch,
                                           const std::span<const float>& rope) {
  return std::make_unique<CpuTraining>(kernels, pool, batch, rope);
}

}  // namespace tinyllama::cpu
