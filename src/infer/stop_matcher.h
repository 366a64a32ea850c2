// Finds stop strings in text that arrives in pieces, and holds back what may become one. What it
// returns does not depend on how the text was cut.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tinyllama {

class StopMatcher {
 public:
  StopMatcher() = default;
  // `stops` are not empty. Text up to the first stop that is complete passes; of two that end at
  // the same byte the longer one counts.
  explicit StopMatcher(std::span<const std::string> stops);

  // The text that can no longer be part of a stop. Once matched() it is empty.
  std::string push(std::string_view text);
  bool matched() const { return matched_; }
  // What was held back, when no more text comes.
  std::string flush();

 private:
  struct Stop {
    std::string text;
    std::vector<size_t> border;  // [i]: longest proper prefix of text that ends text[0..i]
    size_t n_matched = 0;        // longest prefix of text that ends what was pushed so far
  };
  std::vector<Stop> stops_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace tinyllama
