// `tinyllama bench`: what this machine can do at most, and how much of it a model gets: every speed
// stands beside the limit that bounds it, both measured in the same run.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include "backend/cpu/probe.h"
#include "base/error.h"
#include "base/rng.h"
#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "infer/sampler.h"
#include "model/kv_cache.h"

namespace tinyllama::cli {
namespace {

constexpr int64_t kFirstPrompt = 16;  // tokens of the prompt whose first answer token is timed
constexpr int64_t kChunk = 512;       // rows of one forward pass of a prompt

struct BenchOptions {
  ModelOptions model;
  std::string prefill = "16,128,512", decode = "1:0,1:1536,4:128,16:128", corpus;
  int repeat = 3, tokens = 32;
  std::string history, peer, peer_batched;
  bool json = false, machine_only = false, no_history = false, no_peer = false;
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
  PrefillResult result;
  result.tokens = tokens;
  result.tokens_per_s = static_cast<double>(tokens) / s;
  result.ops_per_s = prompt_ops(model.llama->config(), tokens) / s;
  return result;
}

DecodeResult bench_decode(const BenchOptions& o, const LoadedModel& model, DType kv_type,
                          int64_t streams, int64_t context, ReadProbe& probe) {
  Runner runner(model, kv_type, context + o.tokens + 1, std::max(kChunk, streams), streams);
  std::vector<KvSequence> sequences;
  {
    KvSequence first = runner.sequence();
    if (context > 0) runner.prompt(first, context);
    sequences.assign(static_cast<size_t>(streams), first);  // copies share the prompt's blocks
  }
  runner.step(sequences);
  const auto cached = static_cast<double>(kv_bytes_per_token(model.llama->config(), kv_type));
  std::vector<double> seconds, fractions;
  // The probe's threads and the model's take turns; who is awake while the other starts would share
  // a core with it.
  const auto settle = [] { std::this_thread::sleep_for(std::chrono::microseconds(300)); };
  double read_before = probe.read();
  for (int i = 0; i < o.tokens; i++) {
    settle();
    const Stopwatch watch;
    runner.step(sequences);
    seconds.push_back(watch.seconds());
    settle();
    const double read_after = probe.read();
    const double bytes = static_cast<double>(model.llama->weights().bytes) +
                         static_cast<double>(streams * (context + i + 2)) * cached;
    fractions.push_back(bytes / seconds.back() / (0.5e9 * (read_before + read_after)));
    read_before = read_after;
  }
  DecodeResult result;
  result.streams = streams;
  result.context = context;
  result.tokens_per_s = static_cast<double>(streams) / median(seconds);
  result.fraction_of_bandwidth = median(fractions);
  return result;
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

// Loads, and answers a short prompt, several times: the best counts, since memory that the system
// has to find first takes its time. Leaves the last one loaded.
LoadedModel bench_load(const BenchOptions& o, ModelResult& result) {
  std::optional<LoadedModel> model;
  for (int i = 0; i < o.repeat; i++) {
    model.reset();
    model = load_model(o.model);
    const DType kv_type = o.model.kv().value_or(model->llama->default_kv_type());
    const double first = bench_first_token(*model, kv_type);
    if (i > 0 && first >= result.first_token_s) continue;
    result.first_token_s = first;
    result.load_s = model->load_seconds;
    result.open_s = model->open_seconds;
    result.tokenizer_s = model->tokenizer_seconds;
    result.pack_s = model->pack_seconds;
  }
  return std::move(*model);
}

void bench_model(const BenchOptions& o, ReadProbe& probe, Report& report) {
  ModelResult result;
  const auto decode_points = parse_decode(o.decode);
  const auto prefill_points = parse_ids(o.prefill, "--prefill");
  const LoadedModel model = bench_load(o, result);
  const Config& config = model.llama->config();
  const DType kv_type = o.model.kv().value_or(model.llama->default_kv_type());
  report.dtype = model.llama->weights().dtype;
  report.kv_type = traits(kv_type).name;
  result.weight_bytes = model.llama->weights().bytes;
  for (const int64_t tokens : prefill_points)
    if (tokens > 0 && tokens <= config.context)
      result.prefill.push_back(bench_prefill(o, model, kv_type, tokens));
  for (const auto& [streams, context] : decode_points)
    if (streams > 0 && context + o.tokens + 1 <= config.context)
      result.decode.push_back(bench_decode(o, model, kv_type, streams, context, probe));
  // The probe's memory was there all the time.
  result.peak_rss_mb = peak_memory_mb() - static_cast<double>(probe.bytes()) / 1e6;
  if (model.tokenizer) result.tokenizer = bench_tokenizer(o, *model.tokenizer);
  report.model = std::move(result);
}

MachinePeaks best_of(const MachinePeaks& a, const MachinePeaks& b) {
  return {std::max(a.read_gbps, b.read_gbps), std::max(a.fp32_gflops, b.fp32_gflops),
          std::max(a.bf16_gflops, b.bf16_gflops), std::max(a.int8_gops, b.int8_gops),
          std::max(a.matrix_bf16_gflops, b.matrix_bf16_gflops)};
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

// The peer's command: the one given, or llama.cpp's own program, where it is installed and can read
// the model.
std::string find_peer(const BenchOptions& o, const std::string& given, const std::string& own) {
  if (o.no_peer || !o.model.model.ends_with(".gguf")) return "";
  if (!given.empty()) return given;
  const std::string path = environment("PATH");
  for (size_t at = 0; at <= path.size();) {
    const size_t end = std::min(path.find(':', at), path.size());
    const std::string program = path.substr(at, end - at) + "/" + own;
    if (::access(program.c_str(), X_OK) == 0) return own;
    at = end + 1;
  }
  return "";
}

std::string history_path(const BenchOptions& o) {
  if (!o.history.empty()) return o.history;
  const std::string cache = environment("XDG_CACHE_HOME"), home = environment("HOME");
  if (!cache.empty()) return cache + "/tinyllama/bench.jsonl";
  return home.empty() ? "" : home + "/.cache/tinyllama/bench.jsonl";
}

void run(BenchOptions o, Output& out) {
  Report report;
  o.model.model = find_model(o);
  report.path = o.model.model;
  report.isa = o.model.isa.empty() ? cpu_isas().front() : o.model.isa;
  ThreadPool pool(o.model.threads);
  report.threads = pool.size();
  report.machine = measure_machine(pool, o.model.isa);
  if (!o.model.model.empty()) {
    {
      ReadProbe probe(pool, o.model.isa);
      reset_peak_memory();
      bench_model(o, probe, report);
    }
    // A shared machine has slow moments: the limit is the best of before and after.
    report.machine = best_of(report.machine, measure_machine(pool, o.model.isa));
    const std::string peer = find_peer(o, o.peer, "llama-bench");
    if (!peer.empty()) compare_with_peer(peer, o.tokens, o.repeat, report);
    const std::string batched = find_peer(o, o.peer_batched, "llama-batched-bench");
    if (!batched.empty()) compare_with_batched_peer(batched, o.tokens, report);
    const std::string history = o.no_history ? "" : history_path(o);
    if (!history.empty()) {
      compare_with_history(history, report);
      append_to_history(history, report);
    }
  }
  if (o.json) {
    out.print("{}\n", to_json(report, 2));
  } else {
    print(report, out);
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
  options.add(
      o->peer,
      {.flags = "--peer",
       .help = "Run this beside it, with llama-bench's options and JSON; unset: llama-bench "
               "where it is installed, for .gguf files",
       .placeholder = "COMMAND"});
  options.add(o->peer_batched,
              {.flags = "--peer-batched",
               .help = "The same for several sequences, with llama-batched-bench's options and "
                       "lines of JSON",
               .placeholder = "COMMAND"});
  options.add(o->no_peer, {.flags = "--no-peer", .help = "Run no peer"});
  options.add(o->history, {.flags = "--history",
                           .help = "File of earlier runs, to compare with and to add to; unset: "
                                   "~/.cache/tinyllama/bench.jsonl",
                           .placeholder = "FILE"});
  options.add(o->no_history, {.flags = "--no-history", .help = "Keep no history"});
  options.add(o->json, {.flags = "--json", .help = "Print one JSON object"});
  declare_model(options, o->model);
  options.example("tinyllama bench -m model.gguf", "a table");
  options.example("tinyllama bench --machine", "the machine's limits alone");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
