// `tinyllama bench`: what this machine can do at most, and how much of it a model gets: every speed
// stands beside the limit that bounds it, both measured in the same run.
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "backend/cpu/probe.h"
#include "base/cpu_info.h"
#include "base/error.h"
#include "base/rng.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "infer/sampler.h"
#include "model/kv_cache.h"

namespace tinyllama::cli {
namespace {

using nlohmann::json;

constexpr int64_t kFirstPrompt = 16;  // tokens of the prompt whose first answer token is timed
constexpr int64_t kChunk = 512;       // rows of one forward pass of a prompt

struct BenchOptions {
  ModelOptions model;
  std::string prefill = "16,128,512", decode = "1:0,1:1536,4:128,16:128", corpus;
  int repeat = 3, tokens = 32;
  bool json = false, machine_only = false;
};

struct PrefillResult {
  int64_t tokens = 0;
  double tokens_per_s = 0, ops_per_s = 0;
};
struct DecodeResult {
  int64_t streams = 0, context = 0;
  double tokens_per_s = 0, bytes_per_s = 0;
};
struct TokenizerResult {
  uint64_t bytes = 0;
  double whole_mb_per_s = 0, lines_mb_per_s = 0;
};
struct ModelResult {
  DType dtype = DType::f32;  // of the weights
  double load_s = 0, first_token_s = 0, peak_rss_mb = 0;
  std::vector<PrefillResult> prefill;
  std::vector<DecodeResult> decode;
  std::optional<TokenizerResult> tokenizer;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Starts the count of peak memory anew, so that the probe's own is not in the model's.
void reset_peak_memory() {
  if (std::FILE* file = std::fopen("/proc/self/clear_refs", "w")) {
    std::fputs("5", file);
    std::fclose(file);
  }
}

double peak_memory_mb() {
  // VmHWM follows reset_peak_memory(); getrusage's figure does not, and is for systems without
  // /proc.
  if (std::FILE* file = std::fopen("/proc/self/status", "r")) {
    char line[256];
    long kib = 0;
    while (std::fgets(line, sizeof line, file) != nullptr)
      if (std::sscanf(line, "VmHWM: %ld", &kib) == 1) break;
    std::fclose(file);
    if (kib > 0) return static_cast<double>(kib) * 1024 / 1e6;
  }
  struct rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024 / 1e6;
}

// Runs token rows through the model; tokens are arbitrary, since speed does not depend on them.
class Runner {
 public:
  Runner(const LoadedModel& model, DType kv_type, int64_t positions, int64_t max_rows,
         int64_t streams)
      : model_(*model.llama),
        cache_(model_.backend(), model_.config(), kv_type,
               KvCache::blocks_for(positions) + streams * KvCache::blocks_for(positions)),
        activations_(model_.backend(), model_.config(), max_rows, std::max<int64_t>(1, streams)) {}

  KvSequence sequence() { return KvSequence(cache_); }

  // Appends `n` tokens to `sequence`; logits for the last one.
  void prompt(KvSequence& sequence, int64_t n) {
    for (int64_t done = 0; done < n;) {
      const int64_t rows = std::min(n - done, activations_.max_rows());
      done += rows;
      run({&sequence, 1}, rows, done == n);
    }
  }

  // One token more for each sequence, in one pass.
  void step(std::span<KvSequence> sequences) { run(sequences, 1, true); }

  std::span<const float> first_logits() {
    const Tensor logits = activations_.logits(1);
    host_.resize(static_cast<size_t>(logits.cols));
    model_.backend().copy_to_host(logits.data, reinterpret_cast<std::byte*>(host_.data()),
                                  logits.bytes());
    return host_;
  }

 private:
  void run(std::span<KvSequence> sequences, int64_t rows_each, bool want_logits) {
    InterruptGuard::check();
    Batch batch;
    for (KvSequence& sequence : sequences) {
      sequence.reserve(rows_each);
      const int64_t first = batch.rows();
      for (int64_t r = 0; r < rows_each; r++)
        batch.tokens.push_back(
            static_cast<TokenId>(counter_++ % static_cast<uint64_t>(model_.config().vocab_size)));
      batch.segments.push_back({.first_row = first,
                                .n_rows = rows_each,
                                .past = sequence.length(),
                                .kv_blocks = sequence.blocks()});
      if (want_logits) batch.logit_rows.push_back(static_cast<int32_t>(batch.rows() - 1));
    }
    forward(model_, batch, cache_, activations_);
    for (KvSequence& sequence : sequences) sequence.advance(rows_each);
  }

  const Llama& model_;
  KvCache cache_;
  Activations activations_;
  std::vector<float> host_;
  uint64_t counter_ = 1;
};

int64_t embedding_parameters(const Config& config) {
  return (config.tied_embeddings ? 1 : 2) * config.vocab_size * config.hidden;
}

// Multiplications and additions of a prompt of `tokens`: two a parameter and token; the head for
// one token.
double prompt_ops(const Config& config, int64_t tokens) {
  const auto layers = static_cast<double>(config.parameters() - embedding_parameters(config));
  const auto head = static_cast<double>(config.vocab_size * config.hidden);
  return 2 * (layers * static_cast<double>(tokens) + head);
}

PrefillResult bench_prefill(const BenchOptions& o, const LoadedModel& model, DType kv_type,
                            int64_t tokens) {
  Runner runner(model, kv_type, tokens, std::min(tokens, kChunk), 1);
  std::vector<double> seconds;
  for (int i = 0; i < o.repeat + 1; i++) {
    KvSequence sequence = runner.sequence();
    const Stopwatch watch;
    runner.prompt(sequence, tokens);
    if (i > 0) seconds.push_back(watch.seconds());  // the first one warms up
  }
  const double s = median(seconds);
  return {tokens, static_cast<double>(tokens) / s, prompt_ops(model.llama->config(), tokens) / s};
}

DecodeResult bench_decode(const BenchOptions& o, const LoadedModel& model, DType kv_type,
                          int64_t streams, int64_t context) {
  Runner runner(model, kv_type, context + o.tokens + 1, std::max(kChunk, streams), streams);
  std::vector<KvSequence> sequences;
  {
    KvSequence first = runner.sequence();
    if (context > 0) runner.prompt(first, context);
    sequences.assign(static_cast<size_t>(streams), first);  // copies share the prompt's blocks
  }
  runner.step(sequences);
  std::vector<double> seconds;
  for (int i = 0; i < o.tokens; i++) {
    const Stopwatch watch;
    runner.step(sequences);
    seconds.push_back(watch.seconds());
  }
  const double s = median(seconds), positions = static_cast<double>(context) + o.tokens / 2.0;
  const double bytes = static_cast<double>(model.llama->weights().bytes) +
                       static_cast<double>(streams) * positions *
                           static_cast<double>(kv_bytes_per_token(model.llama->config(), kv_type));
  return {streams, context, static_cast<double>(streams) / s, bytes / s};
}

double bench_first_token(const LoadedModel& model, DType kv_type) {
  const Stopwatch watch;
  Runner runner(model, kv_type, kFirstPrompt, kFirstPrompt, 1);
  KvSequence sequence = runner.sequence();
  runner.prompt(sequence, kFirstPrompt);
  Sampler sampler(model.llama->config().vocab_size);
  SamplerParams greedy;
  greedy.temperature = 0;
  sampler.sample(runner.first_logits(), greedy, {}, {});
  return model.load_seconds + watch.seconds();
}

// About a megabyte of made-up English-like sentences, the same each time.
std::string made_up_text() {
  constexpr std::string_view kWords[] = {
      "the",    "llama", "of",     "and",     "a",         "walked", "to",   "mountain",
      "in",     "river", "small",  "was",     "quietly",   "it",     "her",  "garden",
      "with",   "under", "yellow", "sky",     "he",        "said",   "that", "never",
      "before", "had",   "anyone", "counted", "seventeen", "stones"};
  std::string text;
  for (uint64_t i = 0; text.size() < 1'000'000; i++) {
    const uint64_t draw = splitmix64(i);
    text += kWords[draw % std::size(kWords)];
    text += draw >> 60 == 0 ? ".\n" : " ";
  }
  return text;
}

TokenizerResult bench_tokenizer(const BenchOptions& o, const Tokenizer& tokenizer) {
  const std::string text = o.corpus.empty() ? made_up_text() : read_input(o.corpus);
  TokenizerResult result{text.size(), 0, 0};
  const auto megabytes = static_cast<double>(text.size()) / 1e6;
  for (int i = 0; i < o.repeat; i++) {
    EncodeScratch scratch;
    std::vector<TokenId> ids;
    const Stopwatch whole;
    tokenizer.encode(text, {}, scratch, ids);
    result.whole_mb_per_s = std::max(result.whole_mb_per_s, megabytes / whole.seconds());
    const Stopwatch lines;
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size());
      ids.clear();
      tokenizer.encode(std::string_view(text).substr(at, end - at), {}, scratch, ids);
      at = end + 1;
    }
    result.lines_mb_per_s = std::max(result.lines_mb_per_s, megabytes / lines.seconds());
  }
  return result;
}

// "1:0,4:128" as (streams, context).
std::vector<std::pair<int64_t, int64_t>> parse_decode(const std::string& text) {
  std::vector<std::pair<int64_t, int64_t>> points;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string point = text.substr(at, end - at);
    const size_t colon = point.find(':');
    if (colon == std::string::npos)
      throw UsageError("--decode: want STREAMS:CONTEXT such as 1:0,4:128, got '" + point + "'");
    points.emplace_back(parse_ids(point.substr(0, colon), "--decode").front(),
                        parse_ids(point.substr(colon + 1), "--decode").front());
    at = end + 1;
  }
  return points;
}

ModelResult bench_model(const BenchOptions& o) {
  ModelResult result;
  const auto decode_points = parse_decode(o.decode);
  const auto prefill_points = parse_ids(o.prefill, "--prefill");
  const LoadedModel model = load_model(o.model);
  const Config& config = model.llama->config();
  const DType kv_type = o.model.kv().value_or(model.llama->default_kv_type());
  result.dtype = model.llama->weights().dtype;
  result.load_s = model.load_seconds;
  result.first_token_s = bench_first_token(model, kv_type);
  for (const int64_t tokens : prefill_points)
    if (tokens > 0 && tokens <= config.context)
      result.prefill.push_back(bench_prefill(o, model, kv_type, tokens));
  for (const auto& [streams, context] : decode_points)
    if (streams > 0 && context + o.tokens + 1 <= config.context)
      result.decode.push_back(bench_decode(o, model, kv_type, streams, context));
  result.peak_rss_mb = peak_memory_mb();
  if (model.tokenizer) result.tokenizer = bench_tokenizer(o, *model.tokenizer);
  return result;
}

MachinePeaks best_of(const MachinePeaks& a, const MachinePeaks& b) {
  return {std::max(a.read_gbps, b.read_gbps), std::max(a.fp32_gflops, b.fp32_gflops),
          std::max(a.bf16_gflops, b.bf16_gflops), std::max(a.int8_gops, b.int8_gops)};
}

struct Report {
  MachinePeaks machine;
  int threads = 0;
  std::string isa, path;
  DType dtype = DType::f32;  // of the model's weights
  std::optional<ModelResult> model;

  // The arithmetic limit of products with these weights, operations a second.
  double peak_ops() const {
    if (traits(dtype).quantized) return machine.int8_gops * 1e9;
    return (dtype == DType::bf16 ? machine.bf16_gflops : machine.fp32_gflops) * 1e9;
  }
  const char* peak_name() const {
    if (traits(dtype).quantized) return "int8";
    return dtype == DType::bf16 ? "BF16" : "FP32";
  }
};

json report_json(const Report& r) {
  json object = {{"machine",
                  {{"read_gbps", r.machine.read_gbps},
                   {"fp32_gflops", r.machine.fp32_gflops},
                   {"bf16_gflops", r.machine.bf16_gflops},
                   {"int8_gops", r.machine.int8_gops},
                   {"threads", r.threads},
                   {"isa", r.isa},
                   {"cpu", cpu_info().model_name}}}};
  if (!r.model) return object;
  const ModelResult& m = *r.model;
  object["model"] = {{"path", r.path}, {"type", traits(r.dtype).name}};
  object["load_s"] = m.load_s;
  object["first_token_s"] = m.first_token_s;
  object["peak_rss_mb"] = m.peak_rss_mb;
  object["prefill"] = json::array();
  for (const PrefillResult& p : m.prefill)
    object["prefill"].push_back({{"tokens", p.tokens},
                                 {"tokens_per_s", p.tokens_per_s},
                                 {"fraction_of_peak", p.ops_per_s / r.peak_ops()}});
  object["decode"] = json::array();
  for (const DecodeResult& d : m.decode)
    object["decode"].push_back(
        {{"streams", d.streams},
         {"context", d.context},
         {"tokens_per_s", d.tokens_per_s},
         {"fraction_of_bandwidth", d.bytes_per_s / (r.machine.read_gbps * 1e9)}});
  if (m.tokenizer)
    object["tokenizer"] = {{"bytes", m.tokenizer->bytes},
                           {"whole_mb_per_s", m.tokenizer->whole_mb_per_s},
                           {"lines_mb_per_s", m.tokenizer->lines_mb_per_s}};
  return object;
}

void print_report(const Report& r, Output& out) {
  out.print("machine    {}, {} threads, {}\n", cpu_info().model_name, r.threads, r.isa);
  out.print(
      "           read {:.1f} GB/s; FP32 {:.0f} GFLOP/s, BF16 {:.0f} GFLOP/s, int8 {:.0f} GOP/s\n",
      r.machine.read_gbps, r.machine.fp32_gflops, r.machine.bf16_gflops, r.machine.int8_gops);
  if (!r.model) return;
  const ModelResult& m = *r.model;
  out.print("model      {} ({})\n", r.path, traits(r.dtype).name);
  out.print(
      "load       {:.2f} s; first token of a {}-token prompt after {:.2f} s; peak memory {:.0f} "
      "MB\n",
      m.load_s, kFirstPrompt, m.first_token_s, m.peak_rss_mb);
  for (const PrefillResult& p : m.prefill)
    out.print("prefill    {:>5} tokens {:>22.1f} tokens/s {:>6.1f} % of the {} peak\n", p.tokens,
              p.tokens_per_s, 100 * p.ops_per_s / r.peak_ops(), r.peak_name());
  for (const DecodeResult& d : m.decode)
    out.print(
        "decode     {:>5} streams at {:>5} {:>10.1f} tokens/s {:>6.1f} % of the read bandwidth\n",
        d.streams, d.context, d.tokens_per_s, 100 * d.bytes_per_s / (r.machine.read_gbps * 1e9));
  if (m.tokenizer)
    out.print("tokenizer  {:.1f} MB/s whole, {:.1f} MB/s by lines (one core, {})\n",
              m.tokenizer->whole_mb_per_s, m.tokenizer->lines_mb_per_s,
              human_bytes(m.tokenizer->bytes));
}

// The model to bench: nothing when none was named and none is found.
std::string find_model(const BenchOptions& o) {
  if (o.machine_only) return "";
  try {
    return resolve_model(o.model.model);
  } catch (const Error&) {
    note("No model found: only the machine is measured (-m names a model).");
    return "";
  }
}

MachinePeaks probe(const BenchOptions& o, Report& report) {
  ThreadPool pool(o.model.threads);
  report.threads = pool.size();
  return measure_machine(pool, o.model.isa);
}

void run(BenchOptions o, Output& out) {
  Report report;
  o.model.model = find_model(o);
  report.path = o.model.model;
  report.isa = o.model.isa.empty() ? cpu_isas().front() : o.model.isa;
  report.machine = probe(o, report);
  if (!o.model.model.empty()) {
    reset_peak_memory();
    report.model = bench_model(o);
    report.dtype = report.model->dtype;
    // A shared machine has slow moments: the limit is the best of before and after.
    report.machine = best_of(report.machine, probe(o, report));
  }
  if (o.json) {
    out.print("{}\n", report_json(report).dump(2));
  } else {
    print_report(report, out);
  }
}

}  // namespace

Action bench(Options& options) {
  auto o = std::make_shared<BenchOptions>();
  options.group("What to measure");
  options.add(o->prefill,
              {.flags = "--prefill", .help = "Prompt lengths", .placeholder = "N,N,..."});
  options.add(o->decode, {.flags = "--decode",
                          .help = "Sequences decoded together, and the context each has already",
                          .placeholder = "STREAMS:CONTEXT,..."});
  options.add(o->tokens, {.flags = "-n,--max-tokens",
                          .help = "Decoded tokens a point; the median counts",
                          .min = 1,
                          .max = 4096});
  options.add(
      o->repeat,
      {.flags = "--repeat", .help = "Runs a point; the median counts", .min = 1, .max = 100});
  options.add(o->corpus, {.flags = "-f,--file",
                          .help = "Text for the tokenizer; unset: made up",
                          .placeholder = "FILE"});
  options.add(o->machine_only, {.flags = "--machine", .help = "Only the machine, no model"});
  options.add(o->json, {.flags = "--json", .help = "Print one JSON object"});
  declare_model(options, o->model);
  options.example("tinyllama bench -m model.gguf", "a table");
  options.example("tinyllama bench --machine", "the machine's limits alone");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
