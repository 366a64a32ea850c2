// The instruction sets compiled in, best first, and the choice among them at run time.
#pragma once

#include <string>

#include "backend/cpu/kernels.h"

namespace tinyllama::cpu {

// The table for `isa`, or the best one this processor runs when empty. Throws Error for an unknown
// name or one the processor lacks, naming those it has.
const Kernels& kernels_for(const std::string& isa);

}  // namespace tinyllama::cpu
