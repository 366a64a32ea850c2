// The program's subcommands: each declares its options and gives back what runs once they are
// parsed. A subcommand, its file and its function share a name; a new one is a file and a line in
// main.cpp.
#pragma once

#include <functional>

#include "cli/console.h"
#include "cli/options.h"

namespace tinyllama::cli {

// Runs the subcommand, printing to `out`. Throws Error when it fails.
using Action = std::function<void(Output& out)>;

Action chat(Options& options);
Action generate(Options& options);
Action tokenize(Options& options);
Action tokenizer(Options& options);
Action convert(Options& options);
Action quantize(Options& options);
Action info(Options& options);
Action logits(Options& options);
Action perplexity(Options& options);
Action init(Options& options);
Action prepare(Options& options);
Action pretrain(Options& options);
Action bench(Options& options);
Action plot(Options& options);

}  // namespace tinyllama::cli
