// Row-wise operations: RMS norm, SwiGLU, rotary embedding. Each row is one call on one thread, its
// reductions in one fixed order.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/vec.h"

namespace tinyllama::cpu::TINYLLAMA_ISA {

void rms_norm(const float* x, const float* w, double eps, int64_t n, float* y) {
  F sums[4] = {set_f(0), set_f(0), set_f(0), set_f(0)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; j++) {
      const F v = load_f(x + i + j * kLanes);
      sums[j] = fma_f(v, v, sums[j]);
    }
  }
  double total = reduce_add_f(add_f(add_f(sums[0], sums[1]), add_f(sums[2], sums[3])));
  for (; i < n; i++) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const auto scale = static_cast<float>(1.0 / __builtin_sqrt(total / static_cast<double>(n) + eps));
  for (i = 0; i + kLanes <= n; i += kLanes)
    store_f(y + i, mul_f(load_f(w + i), mul_f(load_f(x + i), set_f(scale))));
  for (; i < n; i++) y[i] = w[i] * (x[i] * scale);
}

void swiglu(const float* gate, const float* up, int64_t n, float* y) {
  const auto apply = [](F g, F u) {
    return mul_f(div_f(g, add_f(set_f(1), exp_f(sub_f(set_f(0), g)))), u);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_f(y + i, apply(load_f(gate + i), load_f(up + i)));
  if (i == n) return;
  float g[kLanes] = {}, u[kLanes] = {};
  for (int64_t j = i; j < n; j++) {
    g[j - i] = gate[j];
    u[j - i] = up[j];
  }
  store_f(g, apply(load_f(g), load_f(u)));
  for (int64_t j = i; j < n; j++) y[j] = g[j - i];
}

void rope(float* x, const float* cos, const float* sin, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const F a = load_f(x + i), b = load_f(x + half + i), c = load_f(cos + i), s = load_f(sin + i);
    store_f(x + i, sub_f(mul_f(a, c), mul_f(b, s)));
    store_f(x + half + i, add_f(mul_f(b, c), mul_f(a, s)));
  }
  for (; i < half; i++) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cos[i] - b * sin[i];
    x[half + i] = b * cos[i] + a * sin[i];
  }
}

}  // namespace tinyllama::cpu::TINYLLAMA_ISA
