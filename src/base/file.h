// Files as the rest of the program wants them: mapped for reading, atomic for writing. Every
// function throws Error with the path and the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace tinyllama {

// A read-only mapping of a whole file. Movable; the bytes stay at one address until destruction.
class MappedFile {
 public:
  MappedFile() = default;
  // Throws when `path` is missing, unreadable or not a regular file. An empty file maps to size 0.
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Tells the kernel that the pages inside [offset, offset + length) will not be read soon, so that
  // a tensor that was repacked no longer counts as resident. Reading them again is still valid.
  void drop(size_t offset, size_t length) const;
  // Asks the kernel to read the whole file ahead.
  void will_need() const;

 private:
  void unmap();

  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

// Writes a file that appears under its final name only when complete: bytes go to a temporary file
// in the same folder, commit() syncs and renames it. Destroyed without commit(), it leaves nothing
// behind and the old file as it was.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Zero bytes until position() is a multiple of `alignment` (bytes).
  void pad_to(size_t alignment);
  uint64_t position() const { return position_; }
  void commit();

 private:
  void flush();

  std::string path_, temporary_;
  int fd_ = -1;
  uint64_t position_ = 0;
  std::string buffer_;
};

// Writes a folder that appears under its final name only when complete. Write into path() (a
// temporary sibling), then commit() syncs and renames it; an existing folder of the final name is
// replaced.
class AtomicFolder {
 public:
  explicit AtomicFolder(std::string final_path);
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  ~AtomicFolder();

  const std::string& path() const { return temporary_; }
  void commit();

 private:
  std::string final_path_, temporary_;
  bool committed_ = false;
};

// Reads a small text file; throws when it is larger than `max_bytes`.
std::string read_text_file(const std::string& path, size_t max_bytes = size_t{64} << 20);

// How far a long operation is: done of total, in bytes. Called from one thread at a time.
using Progress = std::function<void(std::string_view what, uint64_t done, uint64_t total)>;

}  // namespace tinyllama
