#include "base/append_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace tinyllama {
namespace {

[[noreturn]] void fail_errno(const std::string& path, int code) {
  fail(fmt::format("[write] {}: {}", path, std::strerror(code)));
}

}  // namespace

AppendFile::AppendFile(std::string path, uint64_t size) : path_(std::move(path)), size_(size) {
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_errno(path_, errno);
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) {
    const int code = errno;
    ::close(fd_);
    fail_errno(path_, code);
  }
}

AppendFile::~AppendFile() {
  ::close(fd_);
}

void AppendFile::append(std::string_view record) {
  uint64_t end = size_;
  while (!record.empty()) {
    const ssize_t written = ::write(fd_, record.data(), record.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      const int code = errno;
      // Should this fail too, a torn record stays, which readers leave out.
      (void)!::ftruncate(fd_, static_cast<off_t>(size_));
      fail_errno(path_, code);
    }
    record.remove_prefix(static_cast<size_t>(written));
    end += static_cast<uint64_t>(written);
  }
  size_ = end;
}

void AppendFile::sync() {
  if (::fsync(fd_) != 0) fail_errno(path_, errno);
}

}  // namespace tinyllama
