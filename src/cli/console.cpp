// Streams and signals of the process, see console.h.
#include "cli/console.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace tinyllama::cli {
namespace {

constexpr size_t kBuffer = size_t{1} << 16;

// The globals that signals force on us.
std::atomic<int> interrupts{0}, patience{2};
std::atomic<bool> term_seen{false};
// The handler writes into this pipe: any thread may be the one that is interrupted, but only the
// one that polls must wake.
std::atomic<int> wake_read{-1}, wake_write{-1};

extern "C" void on_interrupt(int signal_number) {
  const int before = errno;
  if (signal_number == SIGTERM) term_seen = true;
  [[maybe_unused]] const ssize_t n = ::write(wake_write, "", 1);
  errno = before;
  if (interrupts.fetch_add(1) + 1 >= patience) ::_exit(130);
}

void handle(int signal_number, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(signal_number, &action, nullptr);
}

}  // namespace

void Output::write(std::string_view text) {
  buffer_ += text;
  if (buffer_.size() >= kBuffer) flush();
}

void Output::flush() {
  const std::string text = std::move(buffer_);
  buffer_.clear();
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(STDOUT_FILENO, text.data() + done, text.size() - done);
    if (n >= 0) {
      done += static_cast<size_t>(n);
    } else if (errno == EPIPE) {
      throw OutputClosed();
    } else if (errno != EINTR) {
      fail(fmt::format("[write] standard output: {}", std::strerror(errno)));
    }
  }
}

bool Output::is_terminal() {
  return ::isatty(STDOUT_FILENO) == 1;
}

bool stderr_is_terminal() {
  return ::isatty(STDERR_FILENO) == 1;
}

void note(std::string_view text) {
  fmt::print(stderr, "{}\n", text);
}

InterruptGuard::InterruptGuard() {
  interrupts = 0;
  int ends[2] = {-1, -1};
  if (::pipe(ends) != 0) fail(fmt::format("[start] pipe: {}", std::strerror(errno)));
  for (const int end : ends) {
    ::fcntl(end, F_SETFD, FD_CLOEXEC);
    ::fcntl(end, F_SETFL, O_NONBLOCK);
  }
  wake_read = ends[0];
  wake_write = ends[1];
  handle(SIGINT, on_interrupt);
  handle(SIGTERM, on_interrupt);
}

InterruptGuard::~InterruptGuard() {
  handle(SIGINT, SIG_DFL);
  handle(SIGTERM, SIG_DFL);
  ::close(wake_write.exchange(-1));
  ::close(wake_read.exchange(-1));
}

void InterruptGuard::set_patience(int signals) {
  patience = signals;
}
bool InterruptGuard::interrupted() {
  return interrupts > 0;
}
bool InterruptGuard::terminated() {
  return term_seen;
}
void InterruptGuard::reset() {
  char drained[64];
  while (::read(wake_read, drained, sizeof drained) > 0) {
  }
  interrupts = term_seen ? 1 : 0;
}
bool InterruptGuard::wait_for_input() {
  while (!interrupted()) {
    pollfd polled[2] = {{STDIN_FILENO, POLLIN, 0}, {wake_read, POLLIN, 0}};
    if (::poll(polled, 2, -1) < 0 && errno != EINTR) break;
    if (polled[0].revents != 0 && polled[1].revents == 0) return true;
  }
  return !interrupted();
}
void InterruptGuard::check() {
  if (interrupted()) throw Interrupted("interrupted");
}

void ProgressBar::clear() {
  if (on_screen_) fmt::print(stderr, "\r\x1b[K");
  on_screen_ = false;
}

std::string ProgressBar::amount(double n) const {
  if (unit_ == Unit::tokens) return fmt::format("{:.0f} tokens", n);
  if (unit_ == Unit::count) return fmt::format("{:.0f}", n);
  return human_bytes(static_cast<uint64_t>(n));
}

void ProgressBar::update(std::string_view what, uint64_t done, uint64_t total) {
  InterruptGuard::check();
  const Clock::time_point now = Clock::now();
  const bool terminal = stderr_is_terminal();
  if (now - drawn_ < (terminal ? std::chrono::milliseconds(100) : std::chrono::milliseconds(5000)))
    return;
  drawn_ = now;
  if (total == 0) {
    const std::string text = fmt::format("{} of {}", what, amount(static_cast<double>(done)));
    if (!terminal) return note(text);
    fmt::print(stderr, "\r\x1b[K{}", text);
    std::fflush(stderr);
    on_screen_ = true;
    return;
  }
  const double fraction = static_cast<double>(done) / static_cast<double>(total);
  if (!terminal) {
    note(fmt::format("{}: {:.0f} % of {}", what, 100 * fraction,
                     amount(static_cast<double>(total))));
    return;
  }
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(fraction * kWidth);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const std::string speed =
      unit_ == Unit::input ? "" : amount(static_cast<double>(done) / seconds) + "/s  ";
  fmt::print(stderr, "\r\x1b[K[{:=<{}}{: <{}}] {:3.0f} %  {}{}", "", filled, "", kWidth - filled,
             100 * fraction, speed, what);
  std::fflush(stderr);
  on_screen_ = true;
}

std::string human_bytes(uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "kB", "MB", "GB", "TB"};
  if (bytes < 1000) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 999.95 && unit + 1 < kUnits.size(); unit++) value /= 1000;
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace tinyllama::cli
