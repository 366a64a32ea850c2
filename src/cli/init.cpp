// `tinyllama init`: a model of random weights by TinyLlama's recipe, as a Hugging Face folder: the
// same file for a seed, on any number of threads.
#include "base/error.h"
#include "base/parallel.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "formats/checkpoint.h"
#include "model/random_weights.h"
#include "text/tokenizer.h"

namespace tinyllama::cli {
namespace {

struct InitOptions {
  std::string preset, out, tokenizer;
  std::string dtype = "bf16";
  uint64_t seed = 0;
  std::optional<uint64_t> given_seed;
  int threads = 0;
};

// Everything of the model but its weights.
Checkpoint describe(const InitOptions& o) {
  Checkpoint checkpoint;
  checkpoint.name = o.preset;
  checkpoint.config = preset(o.preset);
  if (!o.tokenizer.empty()) {
    checkpoint.vocab = open_vocab(o.tokenizer);
    checkpoint.config.vocab_size = std::ssize(checkpoint.vocab->pieces);
  }
  return checkpoint;
}

void run(const InitOptions& o, Output& out) {
  const Stopwatch watch;
  const Checkpoint checkpoint = describe(o);
  ThreadPool pool(o.threads);
  {
    ProgressBar bar;
    const FillRows fill = [&](const TensorSpec& spec, int64_t first, int64_t n, DType dtype,
                              std::byte* to) {
      fill_random_rows(spec, checkpoint.config, o.seed, pool, first, n, dtype, to);
    };
    write_hf_folder(checkpoint, fill, o.out, dtype_from_name(o.dtype), bar.callback());
  }
  out.print("wrote {}: {}, {} parameters of seed {} in {}, {:.1f} s\n", o.out, o.preset,
            checkpoint.config.parameters(), o.seed, o.dtype, watch.seconds());
  if (!checkpoint.vocab)
    out.write("It has no tokenizer: use --ids, or init again with --tokenizer.\n");
}

}  // namespace

Action init(Options& options) {
  auto o = std::make_shared<InitOptions>();
  options.add(
      o->preset,
      {.flags = "--preset", .help = "The shape", .required = true, .choices = preset_names()});
  options.add(o->given_seed,
              {.flags = "--seed", .help = "Same seed, same weights (unset: 0)", .min = 0});
  options.add(o->out, {.flags = "--out",
                       .help = "The Hugging Face folder to write; replaced when it exists",
                       .placeholder = "DIR",
                       .required = true});
  options.add(
      o->dtype,
      {.flags = "--dtype", .help = "Type of the weights", .choices = {"bf16", "f16", "f32"}});
  options.add(
      o->tokenizer,
      {.flags = "--tokenizer",
       .help = "A tokenizer to put into the folder (tokenizer.model, tokenizer.json, a model); "
               "the vocabulary's size follows it",
       .placeholder = "PATH"});
  options.add(o->threads,
              {.flags = "--threads", .help = "Threads; 0: one per core", .min = 0, .max = 1024});
  options.example("tinyllama init --preset tinyllama-120m --seed 1 --out random",
                  "121 M parameters in BF16");
  return [o](Output& out) {
    o->seed = o->given_seed.value_or(0);
    run(*o, out);
  };
}

}  // namespace tinyllama::cli
