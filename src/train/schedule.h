// The learning rate as a pure function of the step.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tinyllama {

enum class ScheduleKind { cosine, wsd, linear, constant };

const std::vector<std::string>& schedule_names();  // in the order of ScheduleKind

struct Schedule {
  ScheduleKind kind = ScheduleKind::cosine;
  double lr = 4e-4;          // after the warm-up
  double min_lr = 4e-5;      // at the last step; not for constant
  int64_t warmup_steps = 0;  // linear from 0 at step 0
  int64_t steps = 1;         // of the whole run
  int64_t decay_steps = 0;   // wsd: the last ones, over which it falls linearly
};

// The rate of the optimizer's step `step`, counted from 1; step `steps` and later have min_lr.
// cosine is TinyLlama's get_lr(it = step) and, with min_lr = 0, Hugging Face's cosine schedule with
// warm-up (Loshchilov and Hutter 2017); wsd is warm-up, stable, decay (Hu et al. 2024, section 4).
// The bits are the same on every machine.
double learning_rate(const Schedule& schedule, int64_t step);

}  // namespace tinyllama
