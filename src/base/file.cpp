#include "base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/error.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;

constexpr size_t kWriteBuffer = size_t{1} << 20;

[[noreturn]] void fail_errno(std::string_view operation, const std::string& path) {
  const int code = errno;
  fail(fmt::format("[{}] {}: {}", operation, path, std::strerror(code)));
}

std::string temporary_name(const std::string& path) {
  std::string trimmed = path;
  while (trimmed.size() > 1 && trimmed.back() == '/') trimmed.pop_back();
  return fmt::format("{}.{}.partial", trimmed, ::getpid());
}

void sync_folder_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  const int fd = ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;  // the rename itself has succeeded; a folder that can't be opened is not ours
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_errno("open", path);
  struct stat status = {};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd);
    fail(fmt::format("[open] {}: want a regular file", path));
  }
  size_ = static_cast<size_t>(status.st_size);
  if (size_ > 0) {
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (address == MAP_FAILED) {
      const int code = errno;
      ::close(fd);
      errno = code;
      fail_errno("map", path);
    }
    data_ = static_cast<const std::byte*>(address);
  }
  ::close(fd);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    unmap();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    path_ = std::move(other.path_);
  }
  return *this;
}

MappedFile::~MappedFile() {
  unmap();
}

void MappedFile::unmap() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  data_ = nullptr;
}

void MappedFile::drop(size_t offset, size_t length) const {
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = std::min(offset + length, size_) / page * page;
  if (data_ == nullptr || begin >= end) return;
  ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

void MappedFile::will_need() const {
  if (data_ != nullptr) ::madvise(const_cast<std::byte*>(data_), size_, MADV_WILLNEED);
}

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)), temporary_(temporary_name(path_)) {
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_errno("write", path_);
  buffer_.reserve(kWriteBuffer);
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

void AtomicFile::write(std::string_view text) {
  position_ += text.size();
  while (!text.empty()) {
    const size_t part = std::min(text.size(), kWriteBuffer - buffer_.size());
    buffer_.append(text.substr(0, part));
    text.remove_prefix(part);
    if (buffer_.size() == kWriteBuffer) flush();
  }
}

void AtomicFile::flush() {
  TL_CHECK(fd_ >= 0);
  const char* from = buffer_.data();
  size_t left = buffer_.size();
  while (left > 0) {
    const ssize_t written = ::write(fd_, from, left);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_errno("write", path_);
    }
    from += written;
    left -= static_cast<size_t>(written);
  }
  buffer_.clear();
}

void AtomicFile::pad_to(size_t alignment) {
  const size_t rest = static_cast<size_t>(position_ % alignment);
  if (rest != 0) write(std::string(alignment - rest, '\0'));
}

void AtomicFile::commit() {
  flush();
  if (::fsync(fd_) != 0) fail_errno("sync", path_);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary_.c_str());
    errno = code;
    fail_errno("write", path_);
  }
  sync_folder_of(path_);
}

AtomicFolder::AtomicFolder(std::string final_path)
    : final_path_(std::move(final_path)), temporary_(temporary_name(final_path_)) {
  while (final_path_.size() > 1 && final_path_.back() == '/') final_path_.pop_back();
  std::error_code code;
  fs::remove_all(temporary_, code);
  if (!fs::create_directories(temporary_, code))
    fail(fmt::format("[write] {}: {}", final_path_, code.message()));
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(temporary_, ignored);
}

void AtomicFolder::commit() {
  // The old folder steps aside first: a crash between the two renames leaves both complete on disk.
  const std::string old = temporary_ + ".old";
  std::error_code code;
  const bool replaced = fs::exists(final_path_);
  if (replaced) fs::rename(final_path_, old, code);
  if (!code) fs::rename(temporary_, final_path_, code);
  if (code) {
    std::error_code ignored;
    if (replaced && !fs::exists(final_path_)) fs::rename(old, final_path_, ignored);
    fail(fmt::format("[write] {}: {}", final_path_, code.message()));
  }
  committed_ = true;
  if (replaced) fs::remove_all(old, code);
  sync_folder_of(final_path_);
}

std::string read_text_file(const std::string& path, size_t max_bytes) {
  const MappedFile file(path);
  if (file.size() > max_bytes)
    fail(fmt::format("[read] {}: want at most {} bytes, got {}", path, max_bytes, file.size()));
  if (file.size() == 0) return {};
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.size());
}

}  // namespace tinyllama
