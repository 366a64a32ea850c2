// The bytes of a file or a pipe, one after the other, decompressed on the way. What is compressed
// is told by its first bytes, whatever its name: gzip (several members too), zstd, or neither.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace tinyllama {

class ByteSource {
 public:
  // Opens a file. Throws Error with the system's reason.
  explicit ByteSource(const std::string& path);
  // Reads an open descriptor, which stays the caller's; `name` is for messages.
  ByteSource(int fd, std::string name);
  ~ByteSource();
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;

  // Fills as much of `to` as there is; 0 only at the end. Throws Error when it cannot be read, or
  // the compressed data is damaged or ends too soon.
  size_t read(std::span<char> to);
  // Bytes taken from the file so far, as stored: what progress is measured by.
  uint64_t position() const { return position_; }

 private:
  struct Decoder;
  struct GzipDecoder;
  struct ZstdDecoder;

  bool fill();
  void look();

  std::string name_;
  int fd_ = -1;
  bool owned_ = false, looked_ = false, at_end_ = false;
  uint64_t position_ = 0;
  std::string buffer_;
  std::span<const char> input_;  // what of the buffer is not used yet
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace tinyllama
