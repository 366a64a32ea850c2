// What a subcommand may say and hear: standard output, notes and progress on standard error,
// Ctrl-C. The only place of the program that touches the process's streams and signals.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <string>
#include <string_view>

#include "base/file.h"

namespace tinyllama::cli {

// The reader of our standard output has gone; main() leaves quietly.
class OutputClosed : public std::exception {
 public:
  const char* what() const noexcept override { return "standard output was closed"; }
};

// Writes to standard output, buffered. Throws OutputClosed when nobody reads it any more, and Error
// when it cannot be written (a full disk).
class Output {
 public:
  Output() = default;
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void write(std::string_view text);
  template <class... Args>
  void print(fmt::format_string<Args...> format, Args&&... args) {
    write(fmt::format(format, std::forward<Args>(args)...));
  }
  void flush();
  // Whether a person looks at it.
  static bool is_terminal();

 private:
  std::string buffer_;
};

// One line on standard error, for people: what was assumed, how long it took.
void note(std::string_view text);
bool stderr_is_terminal();

// From construction to destruction, Ctrl-C and SIGTERM set a flag instead of ending the program;
// when as many as the patience (2) come before anything looks at the flag, the program ends at once
// with 130.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  static void set_patience(int signals);
  static bool interrupted();
  static bool terminated();  // SIGTERM was among the signals
  static void reset();       // forgets Ctrl-C, not SIGTERM
  // Waits until standard input has something to read; false when a signal came first.
  static bool wait_for_input();
  // Throws Interrupted when the flag is set.
  static void check();
};

// Progress of a long operation on standard error: a bar that is redrawn on a terminal, elsewhere a
// plain line every few seconds. It also looks for Ctrl-C, so that what reports progress can be
// stopped.
class ProgressBar {
 public:
  // input: bytes too, but the caller tells the speed
  enum class Unit { bytes, tokens, count, input };
  explicit ProgressBar(Unit unit = Unit::bytes) : unit_(unit) {}
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // A total of 0: nobody knows.
  void update(std::string_view what, uint64_t done, uint64_t total);
  Progress callback() {
    return
        [this](std::string_view what, uint64_t done, uint64_t total) { update(what, done, total); };
  }

 private:
  using Clock = std::chrono::steady_clock;
  void clear();
  std::string amount(double n) const;

  Unit unit_;
  Clock::time_point start_ = Clock::now(), drawn_ = start_;
  std::string what_;
  bool on_screen_ = false;
};

// Seconds since construction.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// An environment variable; empty when it is not set.
std::string environment(const char* name);

// "637.4 MB", decimal units as file sizes are quoted.
std::string human_bytes(uint64_t bytes);

}  // namespace tinyllama::cli
