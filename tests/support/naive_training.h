// The operations of training in their plainest form, as naive_backend.h has those of inference:
// each the derivative of its formula, sums in double.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "backend/training.h"

namespace tinyllama::testing {

class NaivePacked : public Packed {
 public:
  std::vector<float> w;  // (rows, cols)
};

class NaiveTraining : public TrainingOps {
 public:
  NaiveTraining(const Batch* const& batch, const std::span<const float>& rope)
      : batch_(batch), rope_(rope) {}

  void linear_input(const Packed& packed, TensorView dy, Tensor dx) override {
    const auto& w = static_cast<const NaivePacked&>(packed);
    for (int64_t r = 0; r < dy.rows; r++) {
      for (int64_t k = 0; k < w.cols; k++) {
        double sum = 0;
        for (int64_t i = 0; i < w.rows; i++)
          sum += at(dy, r, i) * static_cast<double>(w.w[static_cast<size_t>(i * w.cols + k)]);
        dx.row_as<float>(r)[k] = static_cast<float>(sum);
      }
    }
  }

  void linear_weight(const Packed&, TensorView dy, TensorView x, Tensor dw) override {
    for (int64_t i = 0; i < dw.rows; i++) {
      for (int64_t k = 0; k < dw.cols; k++) {
        double sum = 0;
        for (int64_t r = 0; r < x.rows; r++) sum += at(dy, r, i) * at(x, r, k);
        add(dw, i, k, sum);
      }
    }
  }

  void rms_norm_backward(TensorView x, TensorView w, double eps, TensorView dy, Tensor dx,
                         Tensor dw) override {
    const auto n = static_cast<double>(x.cols);
    std::vector<double> sums(static_cast<size_t>(x.cols));
    for (int64_t r = 0; r < x.rows; r++) {
      double square = 0, product = 0;
      for (int64_t i = 0; i < x.cols; i++) {
        square += at(x, r, i) * at(x, r, i);
        product += at(dy, r, i) * at(w, 0, i) * at(x, r, i);
      }
      const double s = 1 / std::sqrt(square / n + eps);
      for (int64_t i = 0; i < x.cols; i++) {
        add(dx, r, i, s * at(dy, r, i) * at(w, 0, i) - s * s * s / n * product * at(x, r, i));
        sums[static_cast<size_t>(i)] += at(dy, r, i) * at(x, r, i) * s;
      }
    }
    for (int64_t i = 0; i < x.cols; i++) add(dw, 0, i, sums[static_cast<size_t>(i)]);
  }

  void swiglu_backward(TensorView dy, Tensor gate_up) override {
    for (int64_t r = 0; r < dy.rows; r++) {
      for (int64_t i = 0; i < dy.cols; i++) {
        float& gate = gate_up.row_as<float>(r)[i];
        float& up = gate_up.row_as<float>(r)[dy.cols + i];
        const double g = gate, u = up, sigmoid = 1 / (1 + std::exp(-g));
        gate = static_cast<float>(at(dy, r, i) * u * sigmoid * (1 + g * (1 - sigmoid)));
        up = static_cast<float>(at(dy, r, i) * g * sigmoid);
      }
    }
  }

  void attention_backward(TensorView qkv, int64_t n_heads, const KvShape& shape, TensorView,
                          TensorView, TensorView dy, Tensor dqkv) override {
    const int64_t d = shape.head_dim, group = n_heads / shape.n_kv_heads;
    const double scale = 1 / std::sqrt(static_cast<double>(d));
    std::vector<double> sums(static_cast<size_t>(qkv.rows * qkv.cols));
    const auto sum = [&](int64_t r, int64_t i) -> double& {
      return sums[static_cast<size_t>(r * qkv.cols + i)];
    };
    for (const Segment& segment : batch_->segments) {
      for (int64_t t = 0; t < segment.n_rows * n_heads; t++) {
        const int64_t row = segment.first_row + t / n_heads, h = t % n_heads, q = h * d;
        const int64_t k = (n_heads + h / group) * d, v = k + shape.n_kv_heads * d;
        std::vector<double> p, dp;
        double total = 0, mean = 0;
        for (int64_t key = segment.first_row; key <= row; key++) {
          double score = 0, gradient = 0;
          for (int64_t i = 0; i < d; i++) {
            score += at(qkv, row, q + i) * at(qkv, key, k + i) * scale;
            gradient += at(dy, row, h * d + i) * at(qkv, key, v + i);
          }
          p.push_back(std::exp(score));
          dp.push_back(gradient);
          total += p.back();
          mean += p.back() * gradient;
        }
        for (size_t j = 0; j < p.size(); j++) {
          const int64_t key = segment.first_row + static_cast<int64_t>(j);
          const double probability = p[j] / total, ds = probability * (dp[j] - mean / total);
          for (int64_t i = 0; i < d; i++) {
            sum(row, q + i) += scale * ds * at(qkv, key, k + i);
            sum(key, k + i) += scale * ds * at(qkv, row, q + i);
            sum(key, v + i) += probability * at(dy, row, h * d + i);
          }
        }
      }
    }
    for (int64_t r = 0; r < qkv.rows; r++) {
      for (int64_t h = 0; h < n_heads + shape.n_kv_heads; h++) {
        for (int64_t i = 0; i < d / 2; i++) {
          double &a = sum(r, h * d + i), &b = sum(r, h * d + d / 2 + i);
          const double c = rope_[static_cast<size_t>(r * d + i)];
          const double s = rope_[static_cast<size_t>(r * d + d / 2 + i)];
          const double turned = a * c + b * s;
          b = b * c - a * s;
          a = turned;
        }
      }
      for (int64_t i = 0; i < qkv.cols; i++)
        dqkv.row_as<float>(r)[i] = static_cast<float>(sum(r, i));
    }
  }

  void embed_backward(TensorView dy, Tensor dtable) override {
    for (int64_t r = 0; r < dy.rows; r++)
      for (int64_t i = 0; i < dy.cols; i++)
        add(dtable, batch_->tokens[static_cast<size_t>(r)], i, at(dy, r, i));
  }

  void cross_entropy(Tensor logits, std::span<const int32_t> targets, double scale,
                     Tensor losses) override {
    for (int64_t r = 0; r < logits.rows; r++) {
      float* x = logits.row_as<float>(r);
      const int32_t target = targets[static_cast<size_t>(r)];
      const bool counts = target != kIgnoredTarget;
      double total = 0;
      for (int64_t i = 0; i < logits.cols; i++) total += std::exp(static_cast<double>(x[i]));
      losses.row_as<float>(0)[r] =
          counts ? static_cast<float>(std::log(total) - static_cast<double>(x[target])) : 0;
      for (int64_t i = 0; i < logits.cols; i++) {
        const double p = std::exp(static_cast<double>(x[i])) / total;
        x[i] = counts ? static_cast<float>(scale * (p - (i == target ? 1 : 0))) : 0;
      }
    }
  }

  void adamw(const AdamWStep& s, TensorView gradient, Tensor w, Tensor m, Tensor v) override {
    const auto n = static_cast<double>(s.step);
    for (int64_t i = 0; i < w.elements(); i++) {
      float &weight = w.row_as<float>(0)[i], &mean = m.row_as<float>(0)[i];
      float& square = v.row_as<float>(0)[i];
      const double g = at(gradient, 0, i) * s.gradient_scale;
      mean = static_cast<float>(s.beta1 * mean + (1 - s.beta1) * g);
      square = static_cast<float>(s.beta2 * square + (1 - s.beta2) * g * g);
      const double mean_hat = mean / (1 - std::pow(s.beta1, n));
      const double square_hat = square / (1 - std::pow(s.beta2, n));
      const double kept = weight * (1 - s.lr * s.weight_decay);
      weight = static_cast<float>(kept - s.lr * mean_hat / (std::sqrt(square_hat) + s.eps));
    }
  }

  double sum_of_squares(TensorView x) override {
    double sum = 0;
    for (int64_t i = 0; i < x.elements(); i++) sum += at(x, 0, i) * at(x, 0, i);
    return sum;
  }

  void clear(Tensor x) override { std::memset(x.data, 0, x.bytes()); }

 private:
  static double at(const TensorView& x, int64_t r, int64_t i) { return x.row_as<float>(r)[i]; }
  static void add(const Tensor& x, int64_t r, int64_t i, double value) {
    float& to = x.row_as<float>(r)[i];
    to = static_cast<float>(to + value);
  }

  const Batch* const& batch_;
  const std::span<const float>& rope_;
};

}  // namespace tinyllama::testing
