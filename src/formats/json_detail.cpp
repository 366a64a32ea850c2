// Depth, duplicate keys and kinds are checked here, once, for every JSON file that a model consists
// of.
#include "formats/json_detail.h"

#include <fmt/format.h>

#include <cmath>
#include <unordered_set>
#include <vector>

#include "base/error.h"

namespace tinyllama::json_detail {
namespace {

constexpr int kMaxDepth = 64;

template <class Value>
[[noreturn]] void wrong_kind(const Value& value, std::string_view what, std::string_view want,
                             std::string_view where) {
  fail(fmt::format("[load] {}: {} must be {}, got {}", where, what, want, value.type_name()));
}

}  // namespace

Json parse(std::string_view text, std::string_view where) {
  std::vector<std::unordered_set<std::string>> keys;  // of the objects (and arrays) that are open
  const auto watch = [&](int, Json::parse_event_t event, Json& value) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (keys.size() >= kMaxDepth)
          fail(fmt::format("[load] {}: JSON nested deeper than {}", where, kMaxDepth));
        keys.emplace_back();
        break;
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end:
        keys.pop_back();
        break;
      case Json::parse_event_t::key:
        if (!keys.back().insert(value.get_ref<const std::string&>()).second)
          fail(fmt::format("[load] {}: key \"{}\" appears twice", where,
                           value.get_ref<const std::string&>()));
        break;
      case Json::parse_event_t::value:
        break;
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::exception& error) {
    fail(fmt::format("[load] {}: not valid JSON: {}", where, error.what()));
  }
}

Json parse_object(std::string_view text, std::string_view where) {
  Json document = parse(text, where);
  if (!document.is_object())
    fail(fmt::format("[load] {}: want a JSON object, got {}", where, document.type_name()));
  return document;
}

std::string_view member_text(std::string_view document, std::string_view key) {
  int depth = 0;
  size_t value = std::string_view::npos;  // where the wanted value starts
  for (size_t i = 0; i < document.size(); i++) {
    const char c = document[i];
    if (c == '"') {
      const size_t begin = i + 1;
      for (i++; i < document.size() && document[i] != '"'; i++) i += document[i] == '\\' ? 1 : 0;
      if (i >= document.size()) return {};
      const size_t colon = document.find_first_not_of(" \t\r\n", i + 1);
      if (depth == 1 && value == std::string_view::npos &&
          document.substr(begin, i - begin) == key && colon != std::string_view::npos &&
          document[colon] == ':') {
        value = i = colon;
        value++;
      }
    } else if (c == '{' || c == '[') {
      depth++;
    } else if (c == '}' || c == ']' || c == ',') {
      if (c != ',') depth--;
      const bool ends = c == ',' ? depth == 1 : depth == 0;
      if (ends && value != std::string_view::npos) return document.substr(value, i - value);
    }
  }
  return {};
}

const Json* find(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto at = object.find(key);
  return at == object.end() || at->is_null() ? nullptr : &*at;
}

int64_t as_integer(const Json& value, std::string_view what, std::string_view where) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX})
    fail(fmt::format("[load] {}: {} is out of range", where, what));
  if (!value.is_number_integer()) wrong_kind(value, what, "an integer", where);
  return value.get<int64_t>();
}

const std::string& as_string(const Json& value, std::string_view what, std::string_view where) {
  if (!value.is_string()) wrong_kind(value, what, "a string", where);
  return value.get_ref<const std::string&>();
}

std::optional<int64_t> integer(const Json& object, const char* key, std::string_view where) {
  const Json* value = find(object, key);
  if (value == nullptr) return {};
  return as_integer(*value, key, where);
}

std::optional<double> number(const Json& object, const char* key, std::string_view where) {
  const Json* value = find(object, key);
  if (value == nullptr) return {};
  if (!value->is_number()) wrong_kind(*value, key, "a number", where);
  return value->get<double>();
}

std::optional<bool> boolean(const Json& object, const char* key, std::string_view where) {
  const Json* value = find(object, key);
  if (value == nullptr) return {};
  if (!value->is_boolean()) wrong_kind(*value, key, "true or false", where);
  return value->get<bool>();
}

std::optional<std::string> text(const Json& object, const char* key, std::string_view where) {
  const Json* value = find(object, key);
  if (value == nullptr) return {};
  return as_string(*value, key, where);
}

int64_t need_integer(const Json& object, const char* key, std::string_view where) {
  const auto value = integer(object, key, where);
  if (!value) fail(fmt::format("[load] {}: \"{}\" is missing", where, key));
  return *value;
}

}  // namespace tinyllama::json_detail
