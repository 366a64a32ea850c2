// Knuth, Morris and Pratt's automaton (1977), one for each stop string, advanced byte by byte.
#include "infer/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace tinyllama {
namespace {

// The matched length after one more byte, from `n` before it.
size_t advance(std::string_view stop, std::span<const size_t> border, size_t n, char byte) {
  if (n == stop.size()) n = border[n - 1];
  while (n > 0 && stop[n] != byte) n = border[n - 1];
  return stop[n] == byte ? n + 1 : 0;
}

}  // namespace

StopMatcher::StopMatcher(std::span<const std::string> stops) {
  for (const std::string& text : stops) {
    TL_CHECK(!text.empty());
    std::vector<size_t> border(text.size(), 0);
    for (size_t i = 1; i < text.size(); i++)
      border[i] = advance(text, border, border[i - 1], text[i]);
    stops_.push_back({text, std::move(border), 0});
  }
}

std::string StopMatcher::push(std::string_view text) {
  if (matched_) return {};
  if (stops_.empty()) return std::string(text);
  for (const char byte : text) {
    held_ += byte;
    size_t longest = 0;
    for (Stop& stop : stops_) {
      stop.n_matched = advance(stop.text, stop.border, stop.n_matched, byte);
      if (stop.n_matched < stop.text.size()) continue;
      matched_ = true;
      longest = std::max(longest, stop.n_matched);
    }
    if (!matched_) continue;
    held_.resize(held_.size() - longest);
    return std::exchange(held_, {});
  }
  size_t hold = 0;
  for (const Stop& stop : stops_) hold = std::max(hold, stop.n_matched);
  std::string certain = held_.substr(0, held_.size() - hold);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopMatcher::flush() {
  return std::exchange(held_, {});
}

}  // namespace tinyllama
