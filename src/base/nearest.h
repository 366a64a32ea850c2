// What a person meant who mistyped a name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tinyllama {

// The candidate that a mistyped word most likely means; empty when none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace tinyllama
