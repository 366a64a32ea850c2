#include "base/error.h"

namespace tinyllama {

void fail(const std::string& message) {
  throw Error(message);
}

void check_failed(const char* expression, const char* file, int line) {
  throw std::logic_error(std::string(file) + ":" + std::to_string(line) +
                         ": contract broken: " + expression);
}

}  // namespace tinyllama
