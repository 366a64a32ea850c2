// Row-wise operations of training: gradients of norm and activation, cross-entropy, AdamW.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/product.h"

namespace tinyllama::cpu::TINYLLAMA_ISA {

float rms_norm_backward(const float* x, const float* w, double eps, const float* dy, int64_t n,
                        float* dx) {
  F squares[2] = {set_f(0), set_f(0)}, products[2] = {set_f(0), set_f(0)};
  for (int64_t i = 0; i < n; i += 2 * kLanes) {
    for (int64_t j = 0; j < 2 && i + j * kLanes < n; j++) {
      const int64_t at = i + j * kLanes;
      const F v = load_n(x + at, n - at);
      squares[j] = fma_f(v, v, squares[j]);
      products[j] = fma_f(mul_f(load_n(dy + at, n - at), load_n(w + at, n - at)), v, products[j]);
    }
  }
  const double square = reduce_add_f(add_f(squares[0], squares[1]));
  const double product = reduce_add_f(add_f(products[0], products[1]));
  const double scale = 1.0 / __builtin_sqrt(square / static_cast<double>(n) + eps);
  const F along = set_f(static_cast<float>(scale));
  const F back =
      set_f(static_cast<float>(-scale * scale * scale * product / static_cast<double>(n)));
  for (int64_t i = 0; i < n; i += kLanes) {
    const F direct = mul_f(mul_f(load_n(dy + i, n - i), load_n(w + i, n - i)), along);
    const F gradient = fma_f(load_n(x + i, n - i), back, direct);
    store_n(dx + i, add_f(load_n(dx + i, n - i), gradient), n - i);
  }
  return static_cast<float>(scale);
}

void norm_weight_backward(const float* x, int64_t x_stride, const float* dy, int64_t dy_stride,
                          const float* scales, int64_t rows, int64_t n, float* dw) {
  for (int64_t i = 0; i < n; i += kLanes) {
    F sum = set_f(0);
    for (int64_t r = 0; r < rows; r++) {
      const F normed = mul_f(load_n(x + r * x_stride + i, n - i), set_f(scales[r]));
      sum = fma_f(load_n(dy + r * dy_stride + i, n - i), normed, sum);
    }
    store_n(dw + i, add_f(load_n(dw + i, n - i), sum), n - i);
  }
}

void swiglu_backward(const float* dy, int64_t n, float* gate, float* up) {
  const F one = set_f(1);
  for (int64_t i = 0; i < n; i += kLanes) {
    const F g = load_n(gate + i, n - i), u = load_n(up + i, n - i), d = load_n(dy + i, n - i);
    const F sigmoid = div_f(one, add_f(one, exp_f(sub_f(set_f(0), g))));
    const F silu = mul_f(g, sigmoid);
    // silu' = sigmoid (1 + g (1 - sigmoid))
    const F slope = mul_f(sigmoid, fma_f(g, sub_f(one, sigmoid), one));
    store_n(gate + i, mul_f(mul_f(d, u), slope), n - i);
    store_n(up + i, mul_f(d, silu), n - i);
  }
}

double exponentials(float* x, int64_t n, float* largest) {
  const F none = set_f(-__builtin_inff());
  F top = none;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) top = max_f(top, load_f(x + i));
  float max = reduce_max_f(top);
  for (; i < n; i++) max = x[i] > max ? x[i] : max;
  double sum = 0;
  for (i = 0; i < n;) {  // in short runs, whose sums are then added in double precision
    F part = set_f(0);
    const int64_t end = i + 64 * kLanes < n ? i + 64 * kLanes : n;
    for (; i + kLanes <= end; i += kLanes) {
      const F e = exp_f(sub_f(load_f(x + i), set_f(max)));
      store_f(x + i, e);
      part = add_f(part, e);
    }
    sum += static_cast<double>(reduce_add_f(part));
    if (i < end) {
      float e[kLanes];
      store_f(e, exp_f(sub_f(load_n(x + i, n - i), set_f(max))));
      for (int64_t j = 0; i < end; i++, j++) sum += static_cast<double>(x[i] = e[j]);
    }
  }
  *largest = max;
  return sum;
}

void scale(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; i += kLanes)
    store_n(x + i, mul_f(load_n(x + i, n - i), set_f(factor)), n - i);
}

void add(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += kLanes)
    store_n(y + i, add_f(load_n(y + i, n - i), load_n(x + i, n - i)), n - i);
}

double sum_of_squares(const float* x, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n;) {
    F sum = set_f(0);
    const int64_t end = i + 64 * kLanes < n ? i + 64 * kLanes : n;
    for (; i < end; i += kLanes) {
      const F v = load_n(x + i, n - i);
      sum = fma_f(v, v, sum);
    }
    total += static_cast<double>(reduce_add_f(sum));
  }
  return total;
}

void adamw(const AdamWFactors& f, const float* gradient, int64_t n, float* w, float* m, float* v) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t left = n - i;
    const F g = mul_f(load_n(gradient + i, left), set_f(f.gradient));
    const F mean = fma_f(load_n(m + i, left), set_f(f.beta1), mul_f(g, set_f(f.rest1)));
    const F square = fma_f(load_n(v + i, left), set_f(f.beta2), mul_f(mul_f(g, g), set_f(f.rest2)));
    const F spread = fma_f(sqrt_f(square), set_f(f.denominator), set_f(f.eps));
    const F kept = mul_f(load_n(w + i, left), set_f(f.keep));
    store_n(m + i, mean, left);
    store_n(v + i, square, left);
    store_n(w + i, sub_f(kept, mul_f(set_f(f.rate), div_f(mean, spread))), left);
  }
}

}  // namespace tinyllama::cpu::TINYLLAMA_ISA
