// `tinyllama logits`: the FP32 logits of given token ids as a safetensors file, so that anyone can
// check the forward pass against another implementation.
#include "base/error.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "formats/safetensors.h"
#include "model/kv_cache.h"

namespace tinyllama::cli {
namespace {

constexpr int64_t kRows = 256;  // of one forward pass

struct LogitsOptions {
  ModelOptions model;
  std::string ids, prompt, out;
  bool no_bos = false;
};

// Runs `ids` in chunks and hands each chunk's logits, (rows, vocab), to `write`.
template <class Write>
void forward_all(const Llama& model, std::span<const TokenId> ids, DType kv_type,
                 const Write& write) {
  const auto n = static_cast<int64_t>(ids.size());
  KvCache cache(model.backend(), model.config(), kv_type, KvCache::blocks_for(n));
  KvSequence sequence(cache);
  const int64_t chunk = std::min(n, kRows);
  Activations activations(model.backend(), model.config(), chunk, chunk);
  const RopeFrequencies rope = rope_frequencies(model.config(), n);
  for (int64_t first = 0; first < n; first += chunk) {
    InterruptGuard::check();
    const int64_t rows = std::min(chunk, n - first);
    sequence.reserve(rows);
    Batch batch;
    batch.tokens.assign(ids.begin() + first, ids.begin() + first + rows);
    for (int64_t r = 0; r < rows; r++) batch.logit_rows.push_back(static_cast<int32_t>(r));
    batch.segments.push_back({.first_row = 0,
                              .n_rows = rows,
                              .past = first,
                              .kv_blocks = sequence.blocks(),
                              .inv_freq = rope.inv_freq,
                              .rope_scale = rope.scale});
    forward(model, batch, cache, activations);
    sequence.advance(rows);
    write(activations.logits(rows));
  }
}

void run(const LogitsOptions& o, Output& out) {
  if (o.ids.empty() == o.prompt.empty()) throw UsageError("give one of --ids and -p");
  const LoadedModel model = load_model(o.model);
  const Config& config = model.llama->config();
  std::vector<TokenId> ids;
  if (!o.ids.empty()) {
    ids = parse_ids(o.ids, "--ids");
  } else {
    ids = o.no_bos ? model.need_tokenizer().encode(o.prompt)
                   : model.need_tokenizer().encode_prompt(o.prompt);
  }
  for (const TokenId id : ids)
    if (id >= config.vocab_size)
      fail(fmt::format("[logits] --ids: want ids below the vocabulary's size {}, got {}",
                       config.vocab_size, id));
  const auto n = static_cast<int64_t>(ids.size());
  if (n > config.context)
    note(fmt::format("note: {} ids are more than the model's context of {}", n, config.context));
  std::vector<std::byte> host;
  const SafetensorsItem item = {
      "logits", DType::f32, {n, config.vocab_size}, [&](AtomicFile& file) {
        forward_all(*model.llama, ids, o.model.kv().value_or(model.llama->default_kv_type()),
                    [&](const Tensor& logits) {
                      host.resize(logits.bytes());
                      model.backend->copy_to_host(logits.data, host.data(), host.size());
                      file.write(host);
                    });
      }};
  write_safetensors(o.out, std::vector{item});
  out.print("wrote {}: logits ({}, {})\n", o.out, n, config.vocab_size);
}

}  // namespace

Action logits(Options& options) {
  auto o = std::make_shared<LogitsOptions>();
  options.group("Input and output");
  options.add(o->ids, {.flags = "--ids",
                       .help = "Token ids, used as given; no tokenizer is needed",
                       .placeholder = "1,2,3"});
  options.add(o->prompt, {.flags = "-p,--prompt", .help = "Or a text, tokenized as a prompt"});
  options.add(o->no_bos, {.flags = "--no-bos",
                          .help = "With -p: do not start with the beginning-of-sequence token"});
  options.add(o->out, {.flags = "--out",
                       .help = "The file to write: one FP32 tensor `logits` (ids, vocabulary)",
                       .placeholder = "FILE.safetensors",
                       .required = true});
  declare_model(options, o->model);
  options.example("tinyllama logits -m MODEL --ids 1,15043,3186 --out logits.safetensors",
                  "three rows of logits");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
