// The curves of training runs as one HTML page that needs nothing else: no network, no script to
// see the curves (a short one shows values under the mouse), light or dark as the reader's system.
#pragma once

#include <string>
#include <vector>

#include "train/metrics.h"

namespace tinyllama {

struct PlottedRun {
  std::string name;
  std::vector<StepMetrics> steps;
};

// Loss (validation dashed), learning rate, gradient norm and tokens a second over steps, several
// runs in one chart each. Of long runs a line shows the means of equal stretches and a band their
// extremes. Runs may be empty; values that are not finite are gaps.
std::string plot_page(const std::vector<PlottedRun>& runs);

}  // namespace tinyllama
