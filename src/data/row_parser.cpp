// The document in a row, see corpus.h. The only file that compiles the JSON parser for bulk.
#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>

#include "base/error.h"
#include "data/corpus.h"
#include "data/splitter.h"

namespace tinyllama {
namespace {

using simdjson::dom::element;

static_assert(kRowPadding >= simdjson::SIMDJSON_PADDING);

// The element at a path of names; a name that itself contains dots is found too.
bool find_field(element at, std::string_view path, element& found) {
  simdjson::dom::object object;
  if (at.get(object) != simdjson::SUCCESS) return false;
  if (object[path].get(found) == simdjson::SUCCESS) return true;
  for (size_t dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.', dot + 1)) {
    element next;
    if (object[path.substr(0, dot)].get(next) == simdjson::SUCCESS &&
        find_field(next, path.substr(dot + 1), found))
      return true;
  }
  return false;
}

// A text compares as it is, anything else as it is written.
bool equals(element value, const std::string& wanted) {
  std::string_view text;
  if (value.get(text) == simdjson::SUCCESS) return text == wanted;
  return !value.is_null() && simdjson::minify(value) == wanted;
}

RowParser::Parsed malformed(std::string why) {
  return {.kind = RowKind::malformed, .why = std::move(why)};
}

}  // namespace

struct RowParser::State {
  explicit State(const CorpusOptions& corpus_options) : options(corpus_options) {}

  const CorpusOptions& options;
  simdjson::dom::parser json;
  std::vector<std::string> fields;  // of a CSV record

  Parsed parse_json(std::string_view text);
  Parsed parse_csv(const RowBatch& batch, std::string_view text);
  std::string wanted() const { return fmt::format("{}", fmt::join(options.fields, " or ")); }
};

RowParser::Parsed RowParser::State::parse_json(std::string_view text) {
  element row;
  const auto code =
      json.parse(reinterpret_cast<const uint8_t*>(text.data()), text.size(), false).get(row);
  if (code != simdjson::SUCCESS) {
    const std::string why = simdjson::error_message(code);
    return malformed("not JSON: " + why);
  }
  if (!row.is_object()) return malformed("want a JSON object");
  for (const RowFilter& filter : options.filters) {
    element value;
    const bool same = find_field(row, filter.field, value) && equals(value, filter.value);
    if (same != filter.equal) return {.kind = RowKind::filtered};
  }
  for (const std::string& name : options.fields) {
    element value;
    if (!find_field(row, name, value)) continue;
    Parsed parsed;
    if (value.is_null()) return {.kind = RowKind::empty};
    if (value.get(parsed.text) == simdjson::SUCCESS) return parsed;
    return malformed(fmt::format("want text in the field {}", name));
  }
  return malformed(fmt::format("want a field {}", wanted()));
}

RowParser::Parsed RowParser::State::parse_csv(const RowBatch& batch, std::string_view text) {
  if (const char* fault = parse_csv_record(text, fields)) return malformed(fault);
  const std::vector<std::string>& columns = *batch.columns;
  if (fields.size() != columns.size())
    return malformed(fmt::format("want {} fields, got {}", columns.size(), fields.size()));
  const auto field = [&](const std::string& name) -> const std::string* {
    const auto at = std::find(columns.begin(), columns.end(), name);
    return at == columns.end() ? nullptr : &fields[static_cast<size_t>(at - columns.begin())];
  };
  for (const RowFilter& filter : options.filters)
    if ((*field(filter.field) == filter.value) != filter.equal) return {.kind = RowKind::filtered};
  for (const std::string& name : options.fields)
    if (const std::string* value = field(name)) return {.text = *value};
  return malformed(fmt::format("want a column {}", wanted()));
}

RowParser::RowParser(const CorpusOptions& options) : state_(std::make_unique<State>(options)) {}
RowParser::~RowParser() = default;
RowParser::RowParser(RowParser&&) noexcept = default;

RowParser::Parsed RowParser::parse(const RowBatch& batch, const Row& row) {
  if (row.fault != nullptr) return malformed(row.fault);
  if (row.dropped) return {.kind = RowKind::filtered};
  const std::string_view bytes = std::string_view(batch.bytes).substr(row.begin, row.size);
  Parsed parsed;
  switch (batch.format) {
    case CorpusFormat::jsonl:
    case CorpusFormat::json:
      parsed = state_->parse_json(bytes);
      break;
    case CorpusFormat::csv:
      parsed = state_->parse_csv(batch, bytes);
      break;
    case CorpusFormat::text:
    case CorpusFormat::parquet:
      parsed.text = bytes;
      break;
  }
  if (parsed.kind != RowKind::document) return parsed;
  if (parsed.text.find_first_not_of(" \t\r\n\f\v") == std::string_view::npos)
    return {.kind = RowKind::empty};
  if (!simdjson::validate_utf8(parsed.text.data(), parsed.text.size()))
    return malformed("not UTF-8");
  return parsed;
}

}  // namespace tinyllama
