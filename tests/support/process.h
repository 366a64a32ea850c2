// The program as a user drives it: started with arguments, fed, interrupted, and read.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tinyllama::testing {

inline std::string program() {
  return TINYLLAMA_BINARY_DIR "/tinyllama";
}

// A running tinyllama. In a terminal, input, output and errors are the terminal's.
class Process {
 public:
  enum class Where { pipes, terminal };

  Process(const std::vector<std::string>& arguments, Where where,
          const std::vector<std::string>& environment = {})
      : where_(where) {
    int in[2], out[2], err[2];
    if (where == Where::pipes) {
      if (::pipe(in) != 0 || ::pipe(out) != 0 || ::pipe(err) != 0) throw std::runtime_error("pipe");
      pid_ = ::fork();
    } else {
      pid_ = ::forkpty(&terminal_, nullptr, nullptr, nullptr);
    }
    if (pid_ < 0) throw std::runtime_error("fork");
    if (pid_ == 0) {
      if (where == Where::pipes) {
        ::dup2(in[0], STDIN_FILENO), ::dup2(out[1], STDOUT_FILENO), ::dup2(err[1], STDERR_FILENO);
        for (const int fd : {in[0], in[1], out[0], out[1], err[0], err[1]}) ::close(fd);
      }
      run(arguments, environment);
    }
    if (where == Where::pipes) {
      ::close(in[0]), ::close(out[1]), ::close(err[1]);
      in_ = in[1], out_ = out[0], err_ = err[0];
    }
  }
  ~Process() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    for (const int fd : {in_, out_, err_, terminal_})
      if (fd >= 0) ::close(fd);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void send(const std::string& text) const {
    const int fd = where_ == Where::pipes ? in_ : terminal_;
    if (::write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
      throw std::runtime_error("write");
  }
  void close_input() {
    ::close(in_);
    in_ = -1;
  }
  void close_output() {
    ::close(out_);
    out_ = -1;
  }
  void signal(int number) const { ::kill(pid_, number); }

  // Reads until standard output (or the terminal) has shown `text`; false when it ends or 60
  // seconds pass first.
  bool wait_for(const std::string& text) {
    const size_t from = seen_;
    while (output.find(text, from) == std::string::npos)
      if (!read_some()) return false;
    seen_ = output.find(text, from) + text.size();
    return true;
  }

  // Reads until there are `n` bytes of output in all.
  bool wait_for_bytes(size_t n) {
    while (output.size() < n)
      if (!read_some()) return false;
    return true;
  }

  // Whether all output ends within that time; reads what comes.
  bool ends_within(std::chrono::milliseconds time) {
    const auto late = deadline_;
    deadline_ = std::chrono::steady_clock::now() + time;
    while (read_some()) {
    }
    deadline_ = late;
    return !std::exchange(timed_out_, false);
  }

  // Reads to the end and returns the exit code; -1 when a signal killed it or it had to be killed.
  int finish() {
    while (read_some()) {
    }
    if (timed_out_) ::kill(pid_, SIGKILL);
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) && !timed_out_ ? WEXITSTATUS(status) : -1;
  }

  std::string output, errors;

 private:
  [[noreturn]] static void run(const std::vector<std::string>& arguments,
                               const std::vector<std::string>& environment) {
    for (const std::string& pair : environment) {
      const size_t equals = pair.find('=');
      ::setenv(pair.substr(0, equals).c_str(), pair.substr(equals + 1).c_str(), 1);
    }
    const std::string path = program();
    std::vector<char*> argv = {const_cast<char*>(path.c_str())};
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    ::execv(path.c_str(), argv.data());
    ::_exit(127);
  }

  // One read from whichever stream has something; false when all have ended or time is up.
  bool read_some() {
    if (out_ < 0 && err_ < 0 && terminal_ < 0) return false;
    pollfd polled[3] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}, {terminal_, POLLIN, 0}};
    const auto left = deadline_ - std::chrono::steady_clock::now();
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
    if (ms <= 0 || ::poll(polled, 3, static_cast<int>(ms)) <= 0) {
      timed_out_ = timed_out_ || out_ >= 0 || terminal_ >= 0;
      return false;
    }
    bool any = false;
    for (const pollfd& p : polled) {
      if (p.fd < 0 || p.revents == 0) continue;
      char buffer[4096];
      const ssize_t n = ::read(p.fd, buffer, sizeof buffer);
      if (n > 0) {
        (p.fd == err_ ? errors : output).append(buffer, static_cast<size_t>(n));
        any = true;
      } else {
        ::close(p.fd);  // ended; a terminal says so with EIO
        (p.fd == out_ ? out_ : p.fd == err_ ? err_ : terminal_) = -1;
      }
    }
    return any || out_ >= 0 || err_ >= 0 || terminal_ >= 0;
  }

  Where where_;
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1, terminal_ = -1;
  size_t seen_ = 0;
  bool timed_out_ = false;
  std::chrono::steady_clock::time_point deadline_ =
      std::chrono::steady_clock::now() + std::chrono::seconds(60);
};

struct Finished {
  int code;
  std::string out, err;
};

// Runs the program to its end with `input` on standard input.
inline Finished run_program(const std::vector<std::string>& arguments,
                            const std::string& input = "") {
  Process process(arguments, Process::Where::pipes);
  if (!input.empty()) process.send(input);
  process.close_input();
  const int code = process.finish();
  return {code, process.output, process.errors};
}

}  // namespace tinyllama::testing
