// `tinyllama plot`: the curves of training runs as one HTML page.
#include "train/plot.h"

#include <filesystem>

#include "base/error.h"
#include "cli/commands.h"

namespace tinyllama::cli {
namespace {

namespace fs = std::filesystem;

struct PlotOptions {
  std::vector<std::string> runs;
  std::string out = "plot.html";
};

PlottedRun read_run(const std::string& given) {
  const bool is_folder = fs::is_directory(given);
  const std::string path = is_folder ? (fs::path(given) / "metrics.jsonl").string() : given;
  if (!fs::exists(path))
    fail(fmt::format(
        "[plot] {}: want the output folder of a training run, which has a metrics.jsonl", given));
  fs::path name = fs::path(given).lexically_normal();
  if (name.filename().empty()) name = name.parent_path();
  return {name.string(), read_metrics(path)};
}

void run(const PlotOptions& o, Output& out) {
  std::vector<PlottedRun> runs;
  size_t steps = 0;
  for (const std::string& given : o.runs) {
    runs.push_back(read_run(given));
    steps += runs.back().steps.size();
  }
  AtomicFile file(o.out);
  file.write(plot_page(runs));
  file.commit();
  out.print("wrote {}: {} {}, {} steps\n", o.out, runs.size(), runs.size() == 1 ? "run" : "runs",
            steps);
}

}  // namespace

Action plot(Options& options) {
  auto o = std::make_shared<PlotOptions>();
  options.add(o->runs, {.flags = "RUN",
                        .help = "Output folders of training runs, or their metrics.jsonl",
                        .placeholder = "PATH",
                        .required = true});
  options.add(o->out, {.flags = "-o,--out", .help = "The page to write", .placeholder = "FILE"});
  options.example("tinyllama plot runs/a runs/b", "two runs side by side");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
