// Reading and decompressing, see byte_source.h.
#include "data/byte_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/error.h"

namespace tinyllama {
namespace {

constexpr size_t kInput = size_t{1} << 18;

}  // namespace

// Both consume from `input` and return how many bytes they wrote.
struct ByteSource::Decoder {
  virtual ~Decoder() = default;
  virtual size_t decode(std::span<const char>& input, std::span<char> to) = 0;
  virtual bool inside() const = 0;  // the data may not end here
};

struct ByteSource::GzipDecoder : Decoder {
  explicit GzipDecoder(const std::string& name) : name_(name) {
    if (::inflateInit2(&stream_, 15 + 16) != Z_OK) fail("[corpus] zlib has no memory");
  }
  ~GzipDecoder() override { ::inflateEnd(&stream_); }
  GzipDecoder(const GzipDecoder&) = delete;
  GzipDecoder& operator=(const GzipDecoder&) = delete;

  size_t decode(std::span<const char>& input, std::span<char> to) override {
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(input.data()));
    stream_.avail_in = static_cast<uInt>(input.size());
    stream_.next_out = reinterpret_cast<Bytef*>(to.data());
    stream_.avail_out = static_cast<uInt>(std::min<size_t>(to.size(), size_t{1} << 30));
    const uInt wanted = stream_.avail_out;
    inside_ = true;
    const int code = ::inflate(&stream_, Z_NO_FLUSH);
    input = input.last(stream_.avail_in);
    if (code == Z_STREAM_END) {
      inside_ = false;
      ::inflateReset(&stream_);  // another member may follow
    } else if (code != Z_OK && code != Z_BUF_ERROR) {
      fail(fmt::format("[corpus] {}: the gzip data is damaged: {}", name_,
                       stream_.msg != nullptr ? stream_.msg : "wrong header"));
    }
    return wanted - stream_.avail_out;
  }
  bool inside() const override { return inside_; }

 private:
  const std::string& name_;
  z_stream stream_ = {};
  bool inside_ = true;
};

struct ByteSource::ZstdDecoder : Decoder {
  explicit ZstdDecoder(const std::string& name) : name_(name), context_(::ZSTD_createDCtx()) {
    if (context_ == nullptr) fail("[corpus] zstd has no memory");
  }
  ~ZstdDecoder() override { ::ZSTD_freeDCtx(context_); }
  ZstdDecoder(const ZstdDecoder&) = delete;
  ZstdDecoder& operator=(const ZstdDecoder&) = delete;

  size_t decode(std::span<const char>& input, std::span<char> to) override {
    ZSTD_inBuffer in = {input.data(), input.size(), 0};
    ZSTD_outBuffer out = {to.data(), to.size(), 0};
    const size_t left = ::ZSTD_decompressStream(context_, &out, &in);
    if (::ZSTD_isError(left) != 0)
      fail(fmt::format("[corpus] {}: the zstd data is damaged: {}", name_,
                       ::ZSTD_getErrorName(left)));
    input = input.subspan(in.pos);
    inside_ = left != 0;
    return out.pos;
  }
  bool inside() const override { return inside_; }

 private:
  const std::string& name_;
  ZSTD_DCtx* context_;
  bool inside_ = true;
};

ByteSource::ByteSource(const std::string& path)
    : name_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)), owned_(true) {
  if (fd_ < 0) fail(fmt::format("[corpus] {}: {}", path, std::strerror(errno)));
  struct stat status = {};
  if (::fstat(fd_, &status) == 0 && S_ISDIR(status.st_mode)) {
    ::close(fd_);
    fail(fmt::format("[corpus] {}: want a file, got a folder", path));
  }
  ::posix_fadvise(fd_, 0, 0, POSIX_FADV_SEQUENTIAL);
}

ByteSource::ByteSource(int fd, std::string name) : name_(std::move(name)), fd_(fd) {}

ByteSource::~ByteSource() {
  if (owned_) ::close(fd_);
}

// Reads more of the file once all of the buffer is used; false at its end.
bool ByteSource::fill() {
  if (!input_.empty()) return true;
  if (at_end_) return false;
  buffer_.resize(kInput);
  ssize_t n = -1;
  while ((n = ::read(fd_, buffer_.data(), buffer_.size())) < 0)
    if (errno != EINTR) fail(fmt::format("[corpus] {}: {}", name_, std::strerror(errno)));
  position_ += static_cast<uint64_t>(n);
  input_ = std::span(buffer_).first(static_cast<size_t>(n));
  at_end_ = n == 0;
  return !at_end_;
}

// Chooses the decoder. A pipe may give less than 4 bytes at first; then the data is taken as it is
// unless it says more.
void ByteSource::look() {
  looked_ = true;
  if (!fill()) return;
  while (input_.size() < 4) {
    const std::string begin(input_.begin(), input_.end());
    input_ = {};
    if (!fill()) {
      buffer_ = begin;
      input_ = buffer_;
      break;
    }
    buffer_ = begin + std::string(input_.begin(), input_.end());
    input_ = buffer_;
  }
  const std::string_view start(input_.data(), input_.size());
  if (start.starts_with("\x1f\x8b")) {
    decoder_ = std::make_unique<GzipDecoder>(name_);
  } else if (start.starts_with("\x28\xb5\x2f\xfd") ||
             (start.size() >= 4 && (static_cast<unsigned char>(start[0]) & 0xf0) == 0x50 &&
              start.substr(1, 3) == "\x2a\x4d\x18")) {  // a frame, or one to be skipped first
    decoder_ = std::make_unique<ZstdDecoder>(name_);
  }
}

size_t ByteSource::read(std::span<char> to) {
  if (!looked_) look();
  if (decoder_ == nullptr) {
    if (!fill()) return 0;
    const size_t n = std::min(to.size(), input_.size());
    std::copy_n(input_.begin(), n, to.begin());
    input_ = input_.subspan(n);
    return n;
  }
  while (true) {
    const bool more = fill();
    if (!more && !decoder_->inside()) return 0;
    const size_t before = input_.size();
    const size_t n = decoder_->decode(input_, to);
    if (n > 0) return n;
    if (!more || (input_.size() == before && before > 0))
      fail(fmt::format("[corpus] {}: the compressed data ends too soon: the file is truncated",
                       name_));
  }
}

}  // namespace tinyllama
