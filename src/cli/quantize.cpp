// `tinyllama quantize`: a model as a smaller GGUF file.
#include "quantize/quantize.h"

#include "base/parallel.h"
#include "cli/commands.h"

namespace tinyllama::cli {
namespace {

struct QuantizeOptions {
  std::string in, out, type;
  int threads = 0;
};

void run(const QuantizeOptions& o, Output& out) {
  const Stopwatch watch;
  ThreadPool pool(o.threads);
  QuantizeResult result;
  {
    ProgressBar bar;
    result = quantize_model(o.in, o.out, o.type, pool, bar.callback());
  }
  for (const std::string& text : result.notes) note("note: " + text);
  out.print("wrote {} ({}): {} -> {} of weights in {:.1f} s\n", o.out, o.type,
            human_bytes(result.bytes_before), human_bytes(result.bytes_after), watch.seconds());
}

}  // namespace

Action quantize(Options& options) {
  auto o = std::make_shared<QuantizeOptions>();
  options.add(o->in, {.flags = "IN",
                      .help = "A Hugging Face folder, a .gguf or a llama2.c .bin",
                      .placeholder = "PATH",
                      .required = true});
  options.add(o->out, {.flags = "OUT",
                       .help = "The GGUF file to write; replaced when it exists",
                       .placeholder = "FILE.gguf",
                       .required = true});
  options.add(
      o->type,
      {.flags = "--type",
       .help = "What the weights become: q4_0 is the fastest, q4_k_m the most exact of 4 bits, "
               "q8_0 all but lossless",
       .required = true,
       .choices = quantize_types()});
  options.add(o->threads,
              {.flags = "--threads", .help = "Threads; 0: one per core", .min = 0, .max = 1024});
  options.example("tinyllama quantize TinyLlama-1.1B-Chat-v1.0 chat-q4_0.gguf --type q4_0",
                  "2.2 GB become 637 MB");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
