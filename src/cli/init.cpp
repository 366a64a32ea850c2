// `tinyllama init`: a model of random weights by TinyLlama's recipe, as a Hugging Face folder. A
// weight is a pure function of seed, tensor name and index, so the file is the same on any number
// of threads.
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "formats/checkpoint.h"
#include "tensor/quant.h"
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

// Standard deviation of a weight matrix. TinyLlama: sqrt(2 / (5 d)) everywhere, but 1 / (sqrt(d)
// n_layers) for the two projections that write into the residual stream (lit_gpt's `_init_weights`;
// cf. Wang and Komatsuzaki 2021).
double weight_deviation(const TensorSpec& spec, const Config& config) {
  const auto d = static_cast<double>(config.hidden);
  const bool into_residual =
      spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
  return into_residual ? 1 / (std::sqrt(d) * static_cast<double>(config.n_layers))
                       : std::sqrt(2 / (5 * d));
}

// to[i] = N(0, deviation) drawn for element first + i of the stream `key`, in pairs by Box and
// Muller (1958).
void fill_normal(uint64_t key, int64_t first, std::span<float> to, double deviation) {
  const int64_t end = first + std::ssize(to);
  for (int64_t pair = first / 2; 2 * pair < end; pair++) {
    const auto counter = static_cast<uint64_t>(2 * pair);
    const double radius =
        deviation * std::sqrt(-2 * std::log(uniform_open(splitmix64(key + counter))));
    const double angle = 2 * std::numbers::pi * uniform_open(splitmix64(key + counter + 1));
    const int64_t at = 2 * pair - first;
    if (at >= 0) to[static_cast<size_t>(at)] = static_cast<float>(radius * std::cos(angle));
    if (at + 1 < std::ssize(to))
      to[static_cast<size_t>(at + 1)] = static_cast<float>(radius * std::sin(angle));
  }
}

// Rows [first, first + n) of a tensor, encoded as `dtype` at `to`.
void fill_rows(const TensorSpec& spec, const Config& config, uint64_t seed, ThreadPool& pool,
               int64_t first, int64_t n, DType dtype, std::byte* to) {
  const uint64_t key = hash_key(seed, fnv1a64(spec.name));
  const double deviation = weight_deviation(spec, config);
  const size_t stride = row_bytes(dtype, spec.cols);
  pool.for_ranges(n, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(spec.cols), 1.0F);  // what a norm starts as
    for (int64_t r = begin; r < end; r++) {
      if (!spec.is_norm) fill_normal(key, (first + r) * spec.cols, row, deviation);
      encode_row(dtype, row.data(), to + static_cast<size_t>(r) * stride, spec.cols);
    }
  });
}

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
      fill_rows(spec, checkpoint.config, o.seed, pool, first, n, dtype, to);
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
