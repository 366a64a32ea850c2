// Every backend that a test can run on this machine: the naive one, and the CPU's by instruction
// set.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "support/naive_backend.h"

namespace tinyllama::testing {

inline std::vector<std::string> backend_names() {
  std::vector<std::string> names = cpu_isas();
  names.insert(names.begin(), "naive");
  return names;
}

inline std::unique_ptr<Backend> make_backend(const std::string& name, int threads = 1) {
  if (name == "naive") return std::make_unique<NaiveBackend>();
  return make_cpu({threads, name});
}

}  // namespace tinyllama::testing
