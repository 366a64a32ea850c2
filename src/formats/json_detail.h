// JSON from files that nobody has checked yet, on top of nlohmann-json. Included by .cpp files of
// this folder only, so that the library stays out of every interface.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tinyllama::json_detail {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// Parses one JSON document. Throws Error, naming `where`, for a syntax error, invalid UTF-8,
// nesting deeper than 64 or a key that an object holds twice.
Json parse(std::string_view text, std::string_view where);
// As parse(), and the document must be an object.
Json parse_object(std::string_view text, std::string_view where);

// The text of a member of the outermost object, found by counting brackets and without parsing the
// rest: tokenizer.json is megabytes of merges around a few lines that matter. Empty when there is
// none.
std::string_view member_text(std::string_view document, std::string_view key);

// The member `key`, or nullptr when it is absent or null.
const Json* find(const Json& object, const char* key);

// A member of the stated kind; absent or null gives nothing, another kind throws Error.
std::optional<int64_t> integer(const Json& object, const char* key, std::string_view where);
std::optional<double> number(const Json& object, const char* key, std::string_view where);
std::optional<bool> boolean(const Json& object, const char* key, std::string_view where);
std::optional<std::string> text(const Json& object, const char* key, std::string_view where);

// As integer(), and absence throws Error.
int64_t need_integer(const Json& object, const char* key, std::string_view where);

// The value itself as an integer, or Error saying that `what` must be one.
int64_t as_integer(const Json& value, std::string_view what, std::string_view where);
const std::string& as_string(const Json& value, std::string_view what, std::string_view where);

}  // namespace tinyllama::json_detail
