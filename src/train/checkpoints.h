// The checkpoints of a run: folders step-00000040/ in its output folder, each a model that anything
// loads plus the training state, and a link `last` to the newest. At any moment, whatever is killed
// or fills up, the newest whole one is found again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/training_state.h"

namespace tinyllama {

inline constexpr const char* kStateName = "training_state.bin";

class Checkpoints {
 public:
  // `keep` >= 1 newest ones stay. Makes the folder, and clears what a killed run left half written:
  // one process at a time may hold it. Throws Error when it cannot be written to.
  Checkpoints(std::string folder, int64_t keep);

  // Saves as step-<step>: `write_model(path)` writes the model folder at `path`, the state is
  // added, and all of it appears under its name at once. Then `last` points there, and older ones
  // beyond `keep`, and any of later steps (which the run has left behind), are removed. Throws
  // Error with everything as it was when it cannot be written, a full disk say.
  void save(const TrainingCounters& counters, std::span<const StateArray> arrays,
            const std::function<void(const std::string& path)>& write_model);

  struct Found {
    std::string path;
    std::unique_ptr<TrainingState> state;
  };
  // The newest checkpoint that is whole: the state's checksums and those of the weights match, and
  // its name says its step. Damaged ones are passed over, with a word to `warn`.
  std::optional<Found> newest(const std::function<void(std::string_view)>& warn) const;

  // Steps of all that are there, damaged or not, ascending.
  std::vector<int64_t> steps() const;
  std::string path(int64_t step) const;

 private:
  void point_last_to(int64_t step) const;
  void remove(int64_t step) const;

  std::string folder_;
  int64_t keep_;
};

}  // namespace tinyllama
