// The one file that knows CLI11: declares options with it and translates its errors into ours, with
// a suggestion for what was mistyped.
#include "cli/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>

namespace tinyllama::cli {
namespace {

constexpr size_t kWidth = 100, kHelpColumn = 28;  // of --help, in characters

// Levenshtein's distance, in bytes.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); j++) row[j] = j;
  for (size_t i = 1; i <= a.size(); i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); j++) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

std::string range_text(const Option& option) {
  if (std::isinf(option.min)) return fmt::format("at most {}", option.max);
  if (std::isinf(option.max)) return fmt::format("at least {}", option.min);
  return fmt::format("{} to {}", option.min, option.max);
}

// The check of a value's text; returns what is wrong, empty when nothing is.
std::string check_number(const std::string& text, const Option& option) {
  double number = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (code != std::errc() || end != text.data() + text.size())
    return fmt::format("want a number, got '{}'", text);
  if (!(number >= option.min && number <= option.max))
    return fmt::format("want {}, got {}", range_text(option), text);
  return "";
}

std::string check_choice(const std::string& text, const Option& option) {
  if (std::find(option.choices.begin(), option.choices.end(), text) != option.choices.end())
    return "";
  const std::string near = nearest(text, option.choices);
  return fmt::format("want one of {}, got '{}'{}", fmt::join(option.choices, ", "), text,
                     near.empty() ? "" : fmt::format(" (did you mean {}?)", near));
}

// Appends `text` broken into lines of at most kWidth characters, each after `indent` spaces; the
// first line starts where `to` ends.
void append_wrapped(std::string& to, std::string_view text, size_t indent) {
  size_t column = indent;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (column > indent && column + 1 + end > kWidth) {
      to += '\n' + std::string(indent, ' ');
      column = indent;
    }
    if (column > indent) to += ' ';
    to += text.substr(0, end);
    column += end + (column > indent ? 1 : 0);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

// A default worth telling; empty when there is none.
template <class Value>
std::string default_text(const Value& value) {
  if constexpr (requires { value.has_value(); } ||
                std::is_same_v<Value, std::vector<std::string>>) {
    return "";
  } else {
    return fmt::format("{}", value);
  }
}

// How the usage line shows an option that may be given by position: "IN", "[MODEL]"; else empty.
std::string positional_text(const Option& option) {
  if (option.flags.starts_with('-')) return "";
  const std::string name = option.flags.substr(0, option.flags.find(','));
  return option.required ? name : "[" + name + "]";
}

// "IN", "-m,--model PATH": how an option is written.
std::string usage_text(const Option& option, const std::string& placeholder) {
  if (option.flags.find('-') == std::string::npos) return option.flags;
  const bool also_positional = !option.flags.starts_with('-');
  const std::string flags =
      also_positional ? option.flags.substr(option.flags.find(',') + 1) : option.flags;
  return placeholder.empty() ? flags : flags + " " + placeholder;
}

}  // namespace

struct Options::Parser {
  CLI::App app;

  std::vector<std::string> flags() const {
    std::vector<std::string> names = {"--help"};
    for (const CLI::Option* option : app.get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
      for (const std::string& name : option->get_snames()) names.push_back("-" + name);
    }
    return names;
  }
};

Options::Options(std::string name, std::string summary)
    : parser_(std::make_unique<Parser>()), name_(std::move(name)), summary_(std::move(summary)) {
  parser_->app.set_help_flag();  // main() looks for it
}

Options::~Options() = default;

template <class Value>
void Options::declare(Value& value, const Option& option, std::string_view type) {
  CLI::Option* declared = parser_->app.add_option(option.flags, value);
  declared->required(option.required);
  std::string placeholder = option.placeholder.empty() ? std::string(type) : option.placeholder;
  if (!option.choices.empty()) {
    placeholder =
        option.choices.size() > 6 ? "NAME" : fmt::format("{}", fmt::join(option.choices, "|"));
    declared->check([option](const std::string& text) { return check_choice(text, option); }, "");
  } else if (type == "N" || type == "X") {
    declared->check([option](const std::string& text) { return check_number(text, option); }, "");
  }
  std::string help = option.help;
  if (placeholder == "NAME") help += fmt::format(": {}", fmt::join(option.choices, ", "));
  const std::string initial = default_text(value);
  if (option.required) {
    help += " (required)";
  } else if (!initial.empty()) {
    help += fmt::format(" (default {})", initial);
  }
  lines_.push_back({group_, usage_text(option, placeholder), help, positional_text(option)});
}

void Options::add(std::string& value, const Option& o) {
  declare(value, o, "TEXT");
}
void Options::add(int& value, const Option& o) {
  declare(value, o, "N");
}
void Options::add(int64_t& value, const Option& o) {
  declare(value, o, "N");
}
void Options::add(double& value, const Option& o) {
  declare(value, o, "X");
}
void Options::add(std::optional<std::string>& value, const Option& o) {
  declare(value, o, "TEXT");
}
void Options::add(std::optional<int>& value, const Option& o) {
  declare(value, o, "N");
}
void Options::add(std::optional<uint64_t>& value, const Option& o) {
  declare(value, o, "N");
}
void Options::add(std::optional<double>& value, const Option& o) {
  declare(value, o, "X");
}

void Options::add(bool& value, const Option& option) {
  parser_->app.add_flag(option.flags, value);
  lines_.push_back({group_, option.flags, option.help, ""});
}

void Options::add(std::vector<std::string>& values, const Option& option) {
  declare(values, option, "TEXT");
  // An option takes one value each time it is given; arguments by position are all that stand
  // there.
  CLI::Option* last = parser_->app.get_options().back();
  last->expected(option.flags.starts_with('-') ? 1 : -1)->take_all();
  if (!lines_.back().positional.empty()) lines_.back().positional += "...";
}

void Options::example(std::string_view command, std::string_view effect) {
  examples_ += fmt::format("  {}\n      {}\n", command, effect);
}

void Options::parse(const std::vector<std::string>& arguments) {
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as CLI11 wants them
  CLI::App& app = parser_->app;
  try {
    app.parse(reversed);
  } catch (const CLI::ExtrasError&) {
    const std::string extra = app.remaining().front();
    const std::string near =
        extra.starts_with("-") ? nearest(extra.substr(0, extra.find('=')), parser_->flags()) : "";
    throw UsageError(fmt::format("unknown {} '{}'{}",
                                 extra.starts_with("-") ? "option" : "argument", extra,
                                 near.empty() ? "" : fmt::format(", did you mean {}?", near)));
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
}

std::string Options::help() const {
  std::string positional;
  for (const Line& line : lines_)
    positional += line.positional.empty() ? "" : " " + line.positional;
  std::string text =
      fmt::format("{}.\n\nUsage: tinyllama {}{} [options]\n", summary_, name_, positional);
  std::string group;
  for (const Line& line : lines_) {
    if (line.group != group) text += fmt::format("\n{}:\n", line.group);
    group = line.group;
    text += fmt::format("  {:<{}}", line.left, kHelpColumn - 3);
    // A long left side stands alone.
    text += line.left.size() > kHelpColumn - 3 ? "\n" + std::string(kHelpColumn, ' ') : " ";
    append_wrapped(text, line.right, kHelpColumn);
    text += '\n';
  }
  text += fmt::format("\n  {:<{}} Show this and leave\n", "-h,--help", kHelpColumn - 3);
  if (!examples_.empty()) text += "\nExamples:\n" + examples_;
  return text;
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t d = edit_distance(word, candidate);
    if (d < distance) {
      distance = d;
      best = candidate;
    }
  }
  return best;
}

std::vector<int32_t> parse_ids(std::string_view text, std::string_view flag) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    if (*at == ',' || *at == ' ' || *at == '\n' || *at == '\t') {
      at++;
      continue;
    }
    int32_t id = 0;
    const auto [next, code] = std::from_chars(at, end, id);
    if (code != std::errc() || id < 0)
      throw UsageError(fmt::format("{}: want token ids such as 1,2,3, got '{}'", flag,
                                   std::string_view(at, std::min<size_t>(end - at, 20))));
    ids.push_back(id);
    at = next;
  }
  if (ids.empty()) throw UsageError(fmt::format("{}: no ids", flag));
  return ids;
}

}  // namespace tinyllama::cli
