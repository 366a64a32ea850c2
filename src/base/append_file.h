// A file that grows while a program runs: a log that must hold whole records only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tinyllama {

class AppendFile {
 public:
  // Opens `path`, made when it is not there, and cuts it to its first `size` bytes. Functions throw
  // Error with the path and the system's reason.
  AppendFile(std::string path, uint64_t size);
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  ~AppendFile();

  // Adds all of it, or throws and leaves the file as it was (a full disk).
  void append(std::string_view record);
  // Returns when all of it is on the disk.
  void sync();

 private:
  std::string path_;
  uint64_t size_;
  int fd_ = -1;
};

}  // namespace tinyllama
