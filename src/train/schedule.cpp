#include "train/schedule.h"

#include "base/error.h"

namespace tinyllama {
namespace {

constexpr double kPi = 3.14159265358979323846;

// cos(pi x) for x in [0, 1] as -sin(pi (x - 1/2)), a Taylor series of plain products and sums: a
// libm may take another path on another processor.
double cos_pi(double x) {
  const double t = kPi * (x - 0.5), square = t * t;
  double term = t, sum = t;
  for (int n = 3; n <= 25; n += 2) {
    term *= -square / ((n - 1) * n);
    sum += term;
  }
  return -sum;
}

// From `lr` at part 0 to `min_lr` at part 1.
double falling(const Schedule& s, double part) {
  return s.lr + (s.min_lr - s.lr) * part;
}

}  // namespace

const std::vector<std::string>& schedule_names() {
  static const std::vector<std::string> names = {"cosine", "wsd", "linear", "constant"};
  return names;
}

double learning_rate(const Schedule& s, int64_t step) {
  TL_CHECK(step >= 0 && s.warmup_steps >= 0 && s.steps >= s.warmup_steps);
  if (step < s.warmup_steps)
    return s.lr * static_cast<double>(step) / static_cast<double>(s.warmup_steps);
  if (s.kind == ScheduleKind::constant) return s.lr;
  if (step >= s.steps) return s.min_lr;
  const int64_t begin = s.kind == ScheduleKind::wsd ? s.steps - s.decay_steps : s.warmup_steps;
  if (step <= begin) return s.lr;
  const double part = static_cast<double>(step - begin) / static_cast<double>(s.steps - begin);
  if (s.kind != ScheduleKind::cosine) return falling(s, part);
  return s.min_lr + 0.5 * (1 + cos_pi(part)) * (s.lr - s.min_lr);
}

}  // namespace tinyllama
