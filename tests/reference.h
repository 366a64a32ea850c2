// A Llama in double precision, straight from the formulas and as slow as they read: what every
// backend is held to. It keeps what each layer computed, so that taps can be compared.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "formats/config.h"
#include "model/rope.h"

namespace tinyllama::reference {

// (rows, cols), row by row.
struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<double> values;

  Matrix() = default;
  Matrix(int64_t r, int64_t c) : rows(r), cols(c), values(static_cast<size_t>(r * c)) {}
  double* row(int64_t r) { return values.data() + r * cols; }
  const double* row(int64_t r) const { return values.data() + r * cols; }
};

// Weights by their Hugging Face names.
struct Model {
  Config config;
  std::map<std::string, std::vector<float>> tensors;

  const std::vector<float>& operator[](const std::string& name) const { return tensors.at(name); }
  std::string head() const {
    return config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  }
};

// Where an engine rounds on purpose; empty functions round nothing.
struct Rounding {
  // A key or value as the cache stores it.
  std::function<double(double)> kv = {};
  // One row that enters the product with the named weight.
  std::function<void(const std::string& weight, std::span<double>)> linear_input = {};
};

struct Layer {
  Matrix attn_norm;  // (rows, hidden)
  Matrix q, k, v;    // (rows, q_dim), (rows, kv_dim); q and k rotated, k and v as cached
  Matrix attn_out;   // (rows, q_dim)
  Matrix mlp_norm;   // (rows, hidden)
  Matrix gate, up;   // (rows, intermediate)
  Matrix out;        // (rows, hidden): the residual stream
};

struct Pass {
  std::vector<Layer> layers;
  Matrix final_norm;  // (rows, hidden)
  Matrix logits;      // (rows, vocab)
};

// y[r][i] = sum_j w[i][j] x[r][j].
inline Matrix linear(const Model& model, const std::string& weight, Matrix x,
                     const Rounding& rounding) {
  const std::vector<float>& w = model[weight];
  Matrix y(x.rows, static_cast<int64_t>(w.size()) / x.cols);
  for (int64_t r = 0; r < x.rows; r++) {
    double* in = x.row(r);
    if (rounding.linear_input) rounding.linear_input(weight, {in, static_cast<size_t>(x.cols)});
    for (int64_t i = 0; i < y.cols; i++) {
      const float* w_row = w.data() + i * x.cols;
      double sum = 0;
      for (int64_t j = 0; j < x.cols; j++) sum += static_cast<double>(w_row[j]) * in[j];
      y.row(r)[i] = sum;
    }
  }
  return y;
}

// y = w * x / sqrt(mean(x^2) + eps).
inline Matrix rms_norm(const Matrix& x, const std::vector<float>& w, double eps) {
  Matrix y(x.rows, x.cols);
  for (int64_t r = 0; r < x.rows; r++) {
    double sum = 0;
    for (int64_t j = 0; j < x.cols; j++) sum += x.row(r)[j] * x.row(r)[j];
    const double scale = 1 / std::sqrt(sum / static_cast<double>(x.cols) + eps);
    for (int64_t j = 0; j < x.cols; j++) {
      y.row(r)[j] = static_cast<double>(w[static_cast<size_t>(j)]) * x.row(r)[j] * scale;
    }
  }
  return y;
}

// Turns pair (i, i + head_dim / 2) of every head by position * inv_freq[i]; row r is at position r.
inline void rotate(Matrix& x, const RopeFrequencies& rope) {
  const auto half = static_cast<int64_t>(rope.inv_freq.size());
  for (int64_t r = 0; r < x.rows; r++) {
    for (int64_t head = 0; head < x.cols; head += 2 * half) {
      for (int64_t i = 0; i < half; i++) {
        double& a = x.row(r)[head + i];
        double& b = x.row(r)[head + half + i];
        const double angle = static_cast<double>(r) * rope.inv_freq[static_cast<size_t>(i)];
        const double c = rope.scale * std::cos(angle), s = rope.scale * std::sin(angle);
        const double turned_a = a * c - b * s, turned_b = b * c + a * s;
        a = turned_a, b = turned_b;
      }
    }
  }
}

// softmax(q k^T / sqrt(head_dim)) v, causal; query head h reads kv head h / (n_heads / n_kv_heads).
inline Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v, const Config& c) {
  Matrix y(q.rows, q.cols);
  const int64_t d = c.head_dim, group = c.n_heads / c.n_kv_heads;
  for (int64_t r = 0; r < q.rows; r++) {
    for (int64_t h = 0; h < c.n_heads; h++) {
      const int64_t kv_head = h / group;
      std::vector<double> p(static_cast<size_t>(r + 1));
      for (int64_t t = 0; t <= r; t++) {
        double dot = 0;
        for (int64_t i = 0; i < d; i++) dot += q.row(r)[h * d + i] * k.row(t)[kv_head * d + i];
        p[static_cast<size_t>(t)] = dot / std::sqrt(static_cast<double>(d));
      }
      const double top = *std::max_element(p.begin(), p.end());
      double total = 0;
      for (double& x : p) total += x = std::exp(x - top);
      for (int64_t t = 0; t <= r; t++) {
        for (int64_t i = 0; i < d; i++) {
          y.row(r)[h * d + i] += p[static_cast<size_t>(t)] / total * v.row(t)[kv_head * d + i];
        }
      }
    }
  }
  return y;
}

inline Matrix silu_times(const Matrix& gate, const Matrix& up) {
  Matrix y(gate.rows, gate.cols);
  for (size_t i = 0; i < y.values.size(); i++) {
    const double g = gate.values[i];
    y.values[i] = g / (1 + std::exp(-g)) * up.values[i];
  }
  return y;
}

inline void add(Matrix& x, const Matrix& y) {
  for (size_t i = 0; i < x.values.size(); i++) x.values[i] += y.values[i];
}

// One sequence from position 0.
inline Pass forward(const Model& model, std::span<const int32_t> tokens,
                    const RopeFrequencies& rope, const Rounding& rounding = {}) {
  const Config& c = model.config;
  Matrix x(static_cast<int64_t>(tokens.size()), c.hidden);
  const std::vector<float>& embed = model["model.embed_tokens.weight"];
  for (int64_t r = 0; r < x.rows; r++) {
    const auto* from = embed.data() + tokens[static_cast<size_t>(r)] * c.hidden;
    std::copy(from, from + c.hidden, x.row(r));
  }

  Pass pass;
  for (int64_t index = 0; index < c.n_layers; index++) {
    const std::string name = "model.layers." + std::to_string(index) + ".";
    const std::string attn = name + "self_attn.", mlp = name + "mlp.";
    Layer& l = pass.layers.emplace_back();
    l.attn_norm = rms_norm(x, model[name + "input_layernorm.weight"], c.norm_eps);
    l.q = linear(model, attn + "q_proj.weight", l.attn_norm, rounding);
    l.k = linear(model, attn + "k_proj.weight", l.attn_norm, rounding);
    l.v = linear(model, attn + "v_proj.weight", l.attn_norm, rounding);
    rotate(l.q, rope);
    rotate(l.k, rope);
    if (rounding.kv) {
      for (double& value : l.k.values) value = rounding.kv(value);
      for (double& value : l.v.values) value = rounding.kv(value);
    }
    l.attn_out = attention(l.q, l.k, l.v, c);
    add(x, linear(model, attn + "o_proj.weight", l.attn_out, rounding));
    l.mlp_norm = rms_norm(x, model[name + "post_attention_layernorm.weight"], c.norm_eps);
    l.gate = linear(model, mlp + "gate_proj.weight", l.mlp_norm, rounding);
    l.up = linear(model, mlp + "up_proj.weight", l.mlp_norm, rounding);
    add(x, linear(model, mlp + "down_proj.weight", silu_times(l.gate, l.up), rounding));
    l.out = x;
  }
  pass.final_norm = rms_norm(x, model["model.norm.weight"], c.norm_eps);
  pass.logits = linear(model, model.head(), pass.final_norm, rounding);
  return pass;
}

inline Pass forward(const Model& model, std::span<const int32_t> tokens,
                    const Rounding& rounding = {}) {
  return forward(model, tokens, rope_frequencies(model.config, model.config.context), rounding);
}

}  // namespace tinyllama::reference
