#include "train/metrics.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "base/file.h"

namespace tinyllama {
namespace {

using Json = nlohmann::json;

std::string json_number(double value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

std::string to_line(const StepMetrics& m) {
  std::string line =
      fmt::format(R"({{"step":{},"loss":{},"lr":{},"grad_norm":{},"tokens_per_s":{},"run":{})",
                  m.step, json_number(m.loss), json_number(m.lr), json_number(m.grad_norm),
                  json_number(m.tokens_per_s), m.run);
  if (m.validation_loss)
    line += fmt::format(R"(,"validation_loss":{})", json_number(*m.validation_loss));
  return line + "}\n";
}

// A number that may be absent or null.
double number(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>()
                                                     : std::numeric_limits<double>::quiet_NaN();
}

// Nothing when the line is no step's object.
std::optional<StepMetrics> from_line(std::string_view line) {
  const Json object = Json::parse(line, nullptr, false);
  if (!object.is_object()) return std::nullopt;
  const auto step = object.find("step"), run = object.find("run");
  if (step == object.end() || !step->is_number_integer()) return std::nullopt;
  StepMetrics m{step->get<int64_t>(),
                number(object, "loss"),
                number(object, "lr"),
                number(object, "grad_norm"),
                number(object, "tokens_per_s"),
                run != object.end() && run->is_number_integer() ? run->get<int64_t>() : 0};
  if (object.contains("validation_loss")) m.validation_loss = number(object, "validation_loss");
  return m;
}

[[noreturn]] void fail_line(const std::string& path, std::string_view line) {
  fail(fmt::format("[metrics] {}: want lines such as {{\"step\":1,\"loss\":...}}, got '{}'", path,
                   line.substr(0, 60)));
}

// The whole lines of a file, without what follows the last line break.
std::string_view whole_lines(const MappedFile& file) {
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.size());
  const size_t end = text.rfind('\n');
  return end == std::string_view::npos ? std::string_view() : text.substr(0, end + 1);
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path, int64_t last_step) {
  uint64_t keep = 0;
  if (std::filesystem::exists(path)) {
    const MappedFile file(path);
    const std::string_view text = whole_lines(file);
    if (text.empty() && file.size() > 0 &&
        *reinterpret_cast<const char*>(file.bytes().data()) != '{')
      fail_line(path, {reinterpret_cast<const char*>(file.bytes().data()), file.size()});
    // From the end, since a long run's file is long and little of it goes.
    for (keep = text.size(); keep > 0;) {
      const size_t before = keep >= 2 ? text.rfind('\n', keep - 2) : std::string_view::npos;
      const size_t begin = before == std::string_view::npos ? 0 : before + 1;
      const auto line = from_line(text.substr(begin, keep - begin));
      if (!line) fail_line(path, text.substr(begin, keep - 1 - begin));
      if (keep == text.size()) run_ = line->run + 1;
      if (line->step <= last_step) break;
      keep = begin;
    }
  }
  file_ = std::make_unique<AppendFile>(path, keep);
}

void MetricsFile::write(const StepMetrics& metrics) {
  file_->append(to_line(metrics));
}

std::vector<StepMetrics> read_metrics(const std::string& path) {
  const MappedFile file(path);
  std::string_view text = whole_lines(file);
  std::vector<StepMetrics> steps;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const auto line = from_line(text.substr(0, end));
    if (!line) fail_line(path, text.substr(0, end));
    steps.push_back(*line);
    text.remove_prefix(end + 1);
  }
  return steps;
}

}  // namespace tinyllama
