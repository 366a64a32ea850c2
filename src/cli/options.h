// The command line of one subcommand: each declares its options here and reads them from its own
// struct. The parser behind it is an implementation detail that only options.cpp knows.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tinyllama::cli {

// The command line is wrong; main() prints the message with a hint at --help and exits with 2.
class UsageError : public std::exception {
 public:
  explicit UsageError(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// How an option is spelled and what it may hold.
struct Option {
  std::string flags;  // "-n,--max-tokens"; without dashes: an argument by position
  std::string help;
  std::string placeholder = {};  // "FILE"; empty: as the type suggests
  bool required = false;
  double min = -std::numeric_limits<double>::infinity();  // of numbers, ends included
  double max = std::numeric_limits<double>::infinity();
  std::vector<std::string> choices = {};  // of texts; empty: any
};

class Options {
 public:
  Options(std::string name, std::string summary);
  ~Options();

  // What the value holds now is its default. Values must outlive parse().
  void add(std::string& value, const Option& option);
  void add(int& value, const Option& option);
  void add(int64_t& value, const Option& option);
  void add(double& value, const Option& option);
  void add(bool& value, const Option& option);  // a switch
  void add(std::optional<std::string>& value, const Option& option);
  void add(std::optional<int>& value, const Option& option);
  void add(std::optional<uint64_t>& value, const Option& option);
  void add(std::optional<double>& value, const Option& option);
  // May be given again; by position, takes all that is left.
  void add(std::vector<std::string>& values, const Option& option);

  // Options declared from here on stand under this title in --help.
  void group(std::string title) { group_ = std::move(title); }
  // Lines at the end of --help: a command, and what it does.
  void example(std::string_view command, std::string_view effect);

  // Fills the values. Throws UsageError, with the nearest known option for one that is unknown.
  void parse(const std::vector<std::string>& arguments);
  std::string help() const;

 private:
  struct Parser;
  template <class Value>
  void declare(Value& value, const Option& option, std::string_view type);

  struct Line {  // of --help
    std::string group, left, right, positional;
  };

  std::unique_ptr<Parser> parser_;
  std::string name_, summary_;
  std::string group_ = "Options", examples_;
  std::vector<Line> lines_;
};

// "1,2,3" or "1 2 3" as numbers. Throws UsageError that names `flag` when something else stands
// there.
std::vector<int32_t> parse_ids(std::string_view text, std::string_view flag);

}  // namespace tinyllama::cli
