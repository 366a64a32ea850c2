#include "train/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <filesystem>

#include "base/crc32c.h"
#include "base/error.h"

namespace tinyllama {
namespace {

// Protobuf's wire types (encoding.md of protobuf's documentation).
enum class Wire : uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

// Fields of tensorflow/core/util/event.proto and summary.proto.
constexpr int kEventTime = 1, kEventStep = 2, kEventVersion = 3, kEventSummary = 5, kEventLog = 7;
constexpr int kSummaryValue = 1, kValueTag = 1, kValueSimple = 2, kLogStatus = 1;
constexpr uint64_t kLogStart = 1;

template <class Integer>
void put_fixed(std::string& to, Integer value) {
  for (size_t i = 0; i < sizeof value; i++) to += static_cast<char>(value >> (8 * i));
}

void put_varint(std::string& to, uint64_t value) {
  for (; value >= 128; value >>= 7) to += static_cast<char>((value & 127) | 128);
  to += static_cast<char>(value);
}

void put_key(std::string& to, int field, Wire wire) {
  put_varint(to, static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire));
}

void put_bytes(std::string& to, int field, std::string_view bytes) {
  put_key(to, field, Wire::bytes);
  put_varint(to, bytes.size());
  to += bytes;
}

void put_integer(std::string& to, int field, uint64_t value) {
  put_key(to, field, Wire::varint);
  put_varint(to, value);
}

// CRCs of data that holds CRCs are weak, so they are kept rotated and shifted.
uint32_t masked(uint32_t crc) {
  return std::rotr(crc, 15) + 0xA282EAD8U;
}

std::string record(std::string_view data) {
  std::string framed;
  put_fixed(framed, static_cast<uint64_t>(data.size()));
  put_fixed(framed, masked(crc32c(framed)));
  framed += data;
  put_fixed(framed, masked(crc32c(data)));
  return framed;
}

}  // namespace

EventFile::EventFile(const std::string& folder, int64_t last_step) {
  std::error_code code;
  std::filesystem::create_directories(folder, code);
  if (code) fail(fmt::format("[write] {}: {}", folder, code.message()));
  const auto now = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  // TensorBoard reads a folder's files in the order of their names. Two runs may begin in one
  // second.
  for (int n = 0;; n++) {
    path_ = fmt::format("{}/events.out.tfevents.{:010}.{:04}.{}", folder, now, n, ::getpid());
    if (!std::filesystem::exists(path_)) break;
  }
  file_ = std::make_unique<AppendFile>(path_, 0);
  std::string version;
  put_bytes(version, kEventVersion, "brain.Event:2");
  append_event(version);
  if (last_step > 0) {
    std::string log, fields;
    put_integer(log, kLogStatus, kLogStart);
    put_integer(fields, kEventStep, static_cast<uint64_t>(last_step) + 1);
    put_bytes(fields, kEventLog, log);
    append_event(fields);
  }
}

void EventFile::write(int64_t step,
                      const std::vector<std::pair<std::string_view, double>>& scalars) {
  std::string summary, fields;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    put_bytes(value, kValueTag, tag);
    put_key(value, kValueSimple, Wire::fixed32);
    put_fixed(value, std::bit_cast<uint32_t>(static_cast<float>(number)));
    put_bytes(summary, kSummaryValue, value);
  }
  put_integer(fields, kEventStep, static_cast<uint64_t>(step));
  put_bytes(fields, kEventSummary, summary);
  append_event(fields);
}

void EventFile::append_event(std::string_view fields) {
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::string event;
  put_key(event, kEventTime, Wire::fixed64);
  put_fixed(event, std::bit_cast<uint64_t>(now));
  file_->append(record(event.append(fields)));
}

}  // namespace tinyllama
