// Thrift's compact protocol, as much of it as Parquet's footer and page headers need: structures
// are walked field by field, and what nobody asks for is skipped. For bytes that nobody has
// checked.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace tinyllama {

class ThriftReader {
 public:
  // `where` starts messages; it must outlive the reader.
  ThriftReader(std::span<const std::byte> bytes, std::string_view where)
      : bytes_(bytes), where_(where) {}

  size_t position() const { return position_; }

  struct Field {
    int id = 0;
    int type = 0;
  };

  // Calls use(field) for each field of the structure that starts here. `use` returns whether it has
  // read the field's value; what it has not is skipped.
  template <class Use>
  void structure(const Use& use) {
    if (++depth_ > kMaxDepth) refuse("structures nested too deeply");
    for (int id = 0;;) {
      const uint8_t head = byte();
      if (head == 0) break;
      const int delta = head >> 4;
      id = delta != 0 ? id + delta : static_cast<int>(int_value());
      const Field field = {id, head & 15};
      if (!use(field)) skip(field.type);
    }
    depth_--;
  }

  // Calls use() for each element of the list of structures or strings that starts here.
  template <class Use>
  void list(int wanted_type, const Use& use) {
    const auto [type, n] = list_header();
    if (n > 0 && type != wanted_type) refuse("a list of another type");
    for (uint64_t i = 0; i < n; i++) use();
  }

  // Of types i16, i32 and i64.
  int64_t int_value() {
    const uint64_t v = varint();
    return static_cast<int64_t>(v >> 1) ^ -static_cast<int64_t>(v & 1);
  }
  std::string_view string_value() {
    const uint64_t n = varint();
    if (n > bytes_.size() - position_) refuse("a string longer than what is left");
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + position_,
                                static_cast<size_t>(n));
    position_ += static_cast<size_t>(n);
    return text;
  }

  static constexpr int kTrue = 1, kFalse = 2, kByte = 3, kI16 = 4, kI32 = 5, kI64 = 6, kDouble = 7,
                       kString = 8, kList = 9, kSet = 10, kMap = 11, kStruct = 12;
  static bool is_int(int type) { return type == kI16 || type == kI32 || type == kI64; }
  static bool is_bool(int type) { return type == kTrue || type == kFalse; }

 private:
  static constexpr int kMaxDepth = 32;

  struct ListHeader {
    int type;
    uint64_t size;
  };

  uint8_t byte() {
    if (position_ >= bytes_.size()) refuse("the end of the data");
    return static_cast<uint8_t>(bytes_[position_++]);
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t b = byte();
      value |= static_cast<uint64_t>(b & 0x7f) << shift;
      if (b < 0x80) return value;
    }
    refuse("a number of more than 64 bits");
  }

  // Every element takes a byte at least (a structure its end), so the size is bounded by the data.
  ListHeader list_header() {
    const uint8_t head = byte();
    const uint64_t size = (head >> 4) == 15 ? varint() : head >> 4;
    if (size > bytes_.size() - position_) refuse("a list longer than what is left");
    return {head & 15, size};
  }

  void advance(size_t n) {
    if (n > bytes_.size() - position_) refuse("the end of the data");
    position_ += n;
  }

  // `in_list`: booleans have a byte there; as fields they are in the header.
  void skip(int type, bool in_list = false) {
    switch (type) {
      case kTrue:
      case kFalse:
        return in_list ? advance(1) : void();
      case kByte:
        return advance(1);
      case kI16:
      case kI32:
      case kI64:
        varint();
        return;
      case kDouble:
        return advance(8);
      case kString:
        string_value();
        return;
      case kStruct:
        return structure([](const Field&) { return false; });
      case kList:
      case kSet:
      case kMap:
        return skip_many(type);
      default:
        refuse("a field of an unknown type");
    }
  }

  void skip_many(int type) {
    if (++depth_ > kMaxDepth) refuse("lists nested too deeply");
    if (type == kMap) {
      const uint64_t n = varint();
      if (n > bytes_.size() - position_) refuse("a map longer than what is left");
      const int types = n == 0 ? 0 : byte();
      for (uint64_t i = 0; i < n; i++) skip(types >> 4, true), skip(types & 15, true);
    } else {
      const ListHeader header = list_header();
      for (uint64_t i = 0; i < header.size; i++) skip(header.type, true);
    }
    depth_--;
  }

  [[noreturn]] void refuse(std::string_view got) const {
    fail("[parquet] " + std::string(where_) + ": the metadata is damaged: " + std::string(got) +
         " at its byte " + std::to_string(position_));
  }

  std::span<const std::byte> bytes_;
  std::string_view where_;
  size_t position_ = 0;
  int depth_ = 0;
};

}  // namespace tinyllama
