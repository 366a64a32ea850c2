// Each pass is written once over the compiler's vectors and compiled for every instruction set that
// helps. A vector's width changes from one to the next, the eight lanes a sum runs over do not, and
// nothing is contracted: the bits are the same in all.
#include "infer/stable_math.h"

#include <algorithm>
#include <limits>

#include "base/cpu_info.h"
#include "base/rng.h"

namespace tinyllama {
namespace {

#define TL_INLINE inline __attribute__((always_inline))

constexpr size_t kLanes = 8;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

template <int kWidth>
struct Vectors {
  // NOLINTBEGIN(modernize-use-using): an alias drops the attribute when its size depends on kWidth
  typedef double Double __attribute__((vector_size(kWidth * sizeof(double))));
  typedef float Float __attribute__((vector_size(kWidth * sizeof(float))));
  typedef int32_t Int __attribute__((vector_size(kWidth * sizeof(int32_t))));
  typedef uint64_t Word __attribute__((vector_size(kWidth * sizeof(uint64_t))));
  // NOLINTEND(modernize-use-using)
};

// x = e^x: 2^n times the Taylor series of e^r, |r| <= ln(2) / 2, to r^13 / 13!.
template <class Real, class Word>
TL_INLINE void exp_in_place(Real& x) {
  constexpr double kRound = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const Real least = Real{} - 700.0;
  x = x < least ? least : x;
  const Real shifted = x * kLog2E + kRound;
  const Real n = shifted - kRound;
  const Real r = (x - n * kLn2High) - n * kLn2Low;
  Real p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  x = p * __builtin_bit_cast(Real, (__builtin_bit_cast(Word, shifted) + 1023) << 52);
}

// y_i = e^((x_i - max) * inverse_temperature), for n a multiple of 8.
template <int kWidth>
TL_INLINE void exp_lanes(const float* x, size_t n, double max, double inverse_temperature,
                         double* y) {
  using V = Vectors<kWidth>;
  for (size_t i = 0; i < n; i += kWidth) {
    typename V::Float from;
    __builtin_memcpy(&from, x + i, sizeof from);
    typename V::Double value =
        (__builtin_convertvector(from, typename V::Double) - max) * inverse_temperature;
    exp_in_place<typename V::Double, typename V::Word>(value);
    __builtin_memcpy(y + i, &value, sizeof value);
  }
}

// lanes[j] = the sum over i % 8 = j of e^((x_i - max) * inverse_temperature), for n a multiple
// of 8.
template <int kWidth>
TL_INLINE void sum_exp_lanes(const float* x, size_t n, double max, double inverse_temperature,
                             double* lanes) {
  using V = Vectors<kWidth>;
  typename V::Double sums[kLanes / kWidth] = {};
  for (size_t i = 0; i < n; i += kLanes) {
    for (size_t j = 0; j < kLanes / kWidth; j++) {
      typename V::Float from;
      __builtin_memcpy(&from, x + i + j * kWidth, sizeof from);
      typename V::Double value =
          (__builtin_convertvector(from, typename V::Double) - max) * inverse_temperature;
      exp_in_place<typename V::Double, typename V::Word>(value);
      sums[j] += value;
    }
  }
  __builtin_memcpy(lanes, sums, sizeof sums);
}

// The maxima of n whole blocks; false when a value is NaN or +infinity.
template <int kWidth>
TL_INLINE bool maxima_of_blocks(const float* x, size_t n, float* maxima) {
  using V = Vectors<kWidth>;
  const typename V::Float largest = typename V::Float{} + std::numeric_limits<float>::max();
  typename V::Int fine = typename V::Int{} - 1;
  for (size_t block = 0; block < n; block++, x += kScanBlock) {
    typename V::Float most;
    __builtin_memcpy(&most, x, sizeof most);
    fine &= most <= largest;
    for (size_t i = kWidth; i < kScanBlock; i += kWidth) {
      typename V::Float next;
      __builtin_memcpy(&next, x + i, sizeof next);
      most = next > most ? next : most;
      fine &= next <= largest;
    }
    float lanes[kWidth];
    __builtin_memcpy(lanes, &most, sizeof lanes);
    for (int half = kWidth / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; lane++)
        lanes[lane] = lanes[lane + half] > lanes[lane] ? lanes[lane + half] : lanes[lane];
    maxima[block] = lanes[0];
  }
  int32_t all = -1;
  for (int lane = 0; lane < kWidth; lane++) all &= fine[lane];
  return all == -1;
}

template <int kWidth>
TL_INLINE void hash_words(uint64_t key, uint64_t first, uint64_t* bits) {
  using Word = typename Vectors<kWidth>::Word;
  Word index;
  for (int lane = 0; lane < kWidth; lane++) index[lane] = first + static_cast<uint64_t>(lane);
  for (size_t i = 0; i < kScanBlock; i += kWidth) {
    Word x = (index ^ key) + 0x9E3779B97F4A7C15ull;  // base/rng.h: splitmix64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    x = x ^ (x >> 31);
    __builtin_memcpy(bits + i, &x, sizeof x);
    index += static_cast<uint64_t>(kWidth);
  }
}

// One instruction set's passes.
struct Passes {
  void (*sum_exp)(const float*, size_t, double, double, double*);
  void (*exp_each)(const float*, size_t, double, double, double*);
  bool (*maxima)(const float*, size_t, float*);
  void (*hash)(uint64_t, uint64_t, uint64_t*);
};

void hash_scalar(uint64_t key, uint64_t first, uint64_t* bits) {
  for (size_t i = 0; i < kScanBlock; i++) bits[i] = splitmix64(key ^ (first + i));
}

void sum_exp_portable(const float* x, size_t n, double max, double inverse, double* lanes) {
  sum_exp_lanes<2>(x, n, max, inverse, lanes);
}
void exp_portable(const float* x, size_t n, double max, double inverse, double* y) {
  exp_lanes<2>(x, n, max, inverse, y);
}
bool maxima_portable(const float* x, size_t n, float* maxima) {
  return maxima_of_blocks<4>(x, n, maxima);
}
constexpr Passes kPortable = {sum_exp_portable, exp_portable, maxima_portable, hash_scalar};

#if defined(__x86_64__)
__attribute__((target("avx2"))) void sum_exp_avx2(const float* x, size_t n, double max,
                                                  double inverse, double* lanes) {
  sum_exp_lanes<4>(x, n, max, inverse, lanes);
}
__attribute__((target("avx2"))) void exp_avx2(const float* x, size_t n, double max, double inverse,
                                              double* y) {
  exp_lanes<4>(x, n, max, inverse, y);
}
__attribute__((target("avx2"))) bool maxima_avx2(const float* x, size_t n, float* maxima) {
  return maxima_of_blocks<8>(x, n, maxima);
}
constexpr Passes kAvx2 = {sum_exp_avx2, exp_avx2, maxima_avx2, hash_scalar};

__attribute__((target("avx512f,avx512dq"))) void sum_exp_avx512(const float* x, size_t n,
                                                                double max, double inverse,
                                                                double* lanes) {
  sum_exp_lanes<8>(x, n, max, inverse, lanes);
}
__attribute__((target("avx512f,avx512dq"))) void exp_avx512(const float* x, size_t n, double max,
                                                            double inverse, double* y) {
  exp_lanes<8>(x, n, max, inverse, y);
}
__attribute__((target("avx512f,avx512dq"))) void hash_avx512(uint64_t key, uint64_t first,
                                                             uint64_t* bits) {
  hash_words<8>(key, first, bits);
}
constexpr Passes kAvx512 = {sum_exp_avx512, exp_avx512, maxima_avx2, hash_avx512};
#endif

const Passes& best_passes() {
#if defined(__x86_64__)
  const CpuInfo info = cpu_info();
  if (info.avx512) return kAvx512;
  if (info.avx2) return kAvx2;
#endif
  return kPortable;
}

const Passes& passes() {
  static const Passes& best = best_passes();
  return best;
}

}  // namespace

double stable_exp(double x) {
  exp_in_place<double, uint64_t>(x);
  return x;
}

double sum_exp(std::span<const float> x, float max, double inverse_temperature) {
  double lanes[kLanes];
  const size_t whole = x.size() / kLanes * kLanes;
  passes().sum_exp(x.data(), whole, static_cast<double>(max), inverse_temperature, lanes);
  for (size_t i = whole; i < x.size(); i++)
    lanes[i - whole] +=
        stable_exp((static_cast<double>(x[i]) - static_cast<double>(max)) * inverse_temperature);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
         ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

void exp_each(std::span<const float> x, float max, double inverse_temperature,
              std::span<double> y) {
  const size_t whole = x.size() / kLanes * kLanes;
  passes().exp_each(x.data(), whole, static_cast<double>(max), inverse_temperature, y.data());
  for (size_t i = whole; i < x.size(); i++)
    y[i] = stable_exp((static_cast<double>(x[i]) - static_cast<double>(max)) * inverse_temperature);
}

double log_sum_exp(std::span<const float> x) {
  float max = x[0], maxima[64];
  for (size_t i = 0; i < x.size(); i += kScanBlock * 64) {
    const auto part = x.subspan(i, std::min(x.size() - i, kScanBlock * 64));
    const size_t n = (part.size() + kScanBlock - 1) / kScanBlock;
    block_maxima(part, {maxima, n});
    max = std::max(max, *std::max_element(maxima, maxima + n));
  }
  return static_cast<double>(max) + stable_log(sum_exp(x, max, 1.0));
}

bool block_maxima(std::span<const float> x, std::span<float> maxima) {
  const size_t whole = x.size() / kScanBlock;
  bool fine = passes().maxima(x.data(), whole, maxima.data());
  if (whole * kScanBlock == x.size()) return fine;
  float most = kMinusInfinity;
  for (const float value : x.subspan(whole * kScanBlock)) {
    most = value > most ? value : most;
    fine = fine && value <= std::numeric_limits<float>::max();
  }
  maxima[whole] = most;
  return fine;
}

void hash_block(uint64_t key, uint64_t first, uint64_t* bits) {
  passes().hash(key, first, bits);
}

}  // namespace tinyllama
