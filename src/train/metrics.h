// metrics.jsonl: what a run did, a JSON object a step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/append_file.h"

namespace tinyllama {

struct StepMetrics {
  int64_t step = 0;                                          // from 1
  double loss = 0, lr = 0, grad_norm = 0, tokens_per_s = 0;  // not finite: null in the file
  int64_t run = 0;                                           // resumes so far
  std::optional<double> validation_loss = {};                // at steps where it was measured
};

class MetricsFile {
 public:
  // Opens the file, made when it is not there, and cuts off the steps after `last_step`, the one
  // that training goes on from (0: all of them), and a torn last line. Throws Error when something
  // else than metrics stands there.
  MetricsFile(const std::string& path, int64_t last_step);

  // 0 for a new file, else one more than that of the last step it held before it was cut.
  int64_t run() const { return run_; }
  // Steps increase. A step is in the file whole or not at all.
  void write(const StepMetrics& metrics);
  // Returns when all of it is on the disk.
  void sync() { file_->sync(); }

 private:
  std::unique_ptr<AppendFile> file_;
  int64_t run_ = 0;
};

// All steps of a file; a torn last line, as an interrupted run leaves it, is left out. Throws Error
// with the line that is something else.
std::vector<StepMetrics> read_metrics(const std::string& path);

}  // namespace tinyllama
