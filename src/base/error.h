// The one exception type of the project. An Error ends an operation, never the process; its message
// says what was expected, what was found and what to do, and starts with the operation: "[load]
// ...".
#pragma once

#include <stdexcept>
#include <string>

namespace tinyllama {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The operation was stopped by the user (Ctrl-C, a cancelled request); not a failure.
class Interrupted : public Error {
 public:
  using Error::Error;
};

[[noreturn]] void fail(const std::string& message);

// Reports a programmer error: a broken contract between two pieces of this program. Throws
// std::logic_error so that a host that embeds the library survives; unreachable from any input.
[[noreturn]] void check_failed(const char* expression, const char* file, int line);

}  // namespace tinyllama

#define TL_CHECK(expression) \
  ((expression) ? void(0) : ::tinyllama::check_failed(#expression, __FILE__, __LINE__))
