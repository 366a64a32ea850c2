// `tinyllama perplexity`: how well a model predicts a text.
#include <nlohmann/json.hpp>

#include <cmath>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "infer/engine.h"

namespace tinyllama::cli {
namespace {

struct PerplexityOptions {
  ModelOptions model;
  std::string file;
  std::optional<std::string> against;
  int64_t context = 0;
  bool no_bos = false, json = false;
};

void run(const PerplexityOptions& o, Output& out) {
  const std::string text = read_input(o.file);
  const LoadedModel model = load_model(o.model);
  const Tokenizer& tokenizer = model.need_tokenizer();
  const std::vector<TokenId> ids = tokenizer.encode(text);
  const int64_t window = o.context > 0 ? o.context : model.llama->config().context;
  const TokenId bos = o.no_bos || !tokenizer.vocab().add_bos ? kNoToken : tokenizer.vocab().bos;
  PerplexityCaches caches = {o.model.kv().value_or(model.llama->default_kv_type()), {}};
  if (o.against) caches.against = dtype_from_name(*o.against);
  const Stopwatch watch;
  PerplexityResult result;
  {
    ProgressBar bar(ProgressBar::Unit::tokens);
    result = tinyllama::perplexity(
        *model.llama, ids, window, bos, caches, [&](const PerplexityResult& so_far) {
          bar.update(fmt::format("perplexity {:.4f}", so_far.perplexity()),
                     static_cast<uint64_t>(so_far.targets), ids.size());
        });
  }
  const double seconds = watch.seconds(),
               per_token = result.negative_log_likelihood / static_cast<double>(result.targets);
  const double bits_per_byte =
      result.negative_log_likelihood / std::log(2.0) / static_cast<double>(text.size());
  const auto targets = static_cast<double>(result.targets);
  const std::string_view kv_name = traits(caches.kv_type).name;
  if (o.json) {
    nlohmann::json object = {{"perplexity", result.perplexity()},
                             {"nats_per_token", per_token},
                             {"bits_per_byte", bits_per_byte},
                             {"tokens", result.targets},
                             {"context", window},
                             {"seconds", seconds},
                             {"kv_type", kv_name}};
    if (caches.against) {
      object["against"] = {{"kv_type", traits(*caches.against).name},
                           {"kl_mean", result.kl_sum / targets},
                           {"kl_max", result.kl_max},
                           {"same_top", static_cast<double>(result.same_top) / targets}};
    }
    out.print("{}\n", object.dump());
    return;
  }
  out.print(
      "perplexity {:.4f}  ({:.4f} nats a token, {:.4f} bits a byte; {} tokens in windows of {})\n",
      result.perplexity(), per_token, bits_per_byte, result.targets, window);
  if (caches.against)
    out.print(
        "cache {} against {}: KL {:.2g} nats on average, {:.2g} at most; the same likeliest token "
        "in {:.2f} %\n",
        kv_name, traits(*caches.against).name, result.kl_sum / targets, result.kl_max,
        100 * static_cast<double>(result.same_top) / targets);
  note(fmt::format("{:.1f} s, {:.1f} tokens/s", seconds,
                   static_cast<double>(result.targets) / seconds));
}

}  // namespace

Action perplexity(Options& options) {
  auto o = std::make_shared<PerplexityOptions>();
  options.group("Input");
  options.add(o->file, {.flags = "-f,--file",
                        .help = "The text; - for standard input",
                        .placeholder = "FILE",
                        .required = true});
  options.add(
      o->context,
      {.flags = "--context", .help = "Tokens in one window; 0: the model's context", .min = 0});
  options.add(o->no_bos, {.flags = "--no-bos",
                          .help = "Windows do not start with the beginning-of-sequence token"});
  options.add(o->against,
              {.flags = "--against",
               .help = "Run also with this type of cached keys and values, and print how far the "
                       "distributions lie apart",
               .choices = {"f32", "f16", "bf16", "q8_0"}});
  options.add(o->json, {.flags = "--json", .help = "Print one JSON object"});
  declare_model(options, o->model);
  options.example("tinyllama perplexity -m MODEL --file test.txt",
                  "over the whole file, in windows of the context");
  options.example("tinyllama perplexity -m MODEL --file test.txt --kv-type q8_0 --against f16",
                  "what an 8-bit cache costs");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
