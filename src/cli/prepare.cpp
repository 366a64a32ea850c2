// `tinyllama prepare`: a corpus as packed tokens, for training.
#include "data/prepare.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/parallel.h"
#include "cli/commands.h"
#include "data/loader.h"
#include "formats/checkpoint.h"
#include "formats/hf_folder.h"
#include "train/recipe.h"

namespace tinyllama::cli {
namespace {

struct PrepareArguments {
  std::vector<std::string> inputs, fields, filters;
  std::string tokenizer, out, split, format, bad_rows = "skip", part = "1/1", verify;
  int64_t shard_tokens = int64_t{1} << 26;
  int threads = 0, ranks = 1;
  bool bos = false, json = false;
};

// "2/8".
void parse_part(const std::string& text, int& part, int& parts) {
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, part);
  if (first.ec == std::errc() && first.ptr != end && *first.ptr == '/') {
    const auto second = std::from_chars(first.ptr + 1, end, parts);
    if (second.ec == std::errc() && second.ptr == end && 1 <= part && part <= parts &&
        parts <= 9999)
      return;
  }
  throw UsageError(fmt::format("--part: want I/N with 1 <= I <= N <= 9999, got '{}'", text));
}

PrepareOptions options_of(const PrepareArguments& a) {
  PrepareOptions options;
  options.inputs = a.inputs;
  options.out = a.out;
  if (!a.fields.empty()) options.corpus.fields = a.fields;
  for (const std::string& filter : a.filters)
    options.corpus.filters.push_back(RowFilter::parse(filter));
  options.corpus.separator = a.split;
  if (!a.format.empty()) {
    const auto& names = corpus_formats();
    options.corpus.format =
        static_cast<CorpusFormat>(std::find(names.begin(), names.end(), a.format) - names.begin());
  }
  options.corpus.standard_input = STDIN_FILENO;
  options.bos = a.bos;
  options.skip_bad_rows = a.bad_rows == "skip";
  options.shard_tokens = static_cast<uint64_t>(a.shard_tokens);
  parse_part(a.part, options.part, options.parts);
  return options;
}

std::string human_time(double seconds) {
  const auto s = static_cast<int64_t>(seconds);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

// "12.3 M tokens, 191.4 MB/s of text, 0:42 left".
std::string progress_text(uint64_t done, uint64_t total, const PrepareCounts& counts,
                          uint64_t bytes_before, uint64_t done_before, double seconds) {
  const double rate = static_cast<double>(counts.text_bytes - bytes_before) / seconds;
  std::string text =
      fmt::format("{:.1f} M tokens, {}/s of text", static_cast<double>(counts.tokens) / 1e6,
                  human_bytes(static_cast<uint64_t>(rate)));
  if (total > 0 && done > done_before) {
    const double per_byte = seconds / static_cast<double>(done - done_before);
    text += fmt::format(", {} left", human_time(static_cast<double>(total - done) * per_byte));
  }
  return text;
}

void print_json(const PrepareResult& result, double seconds, double rate, Output& out) {
  const PrepareCounts& c = result.counts;
  out.print("{}\n", nlohmann::json({{"documents", c.documents},
                                    {"tokens", c.tokens},
                                    {"text_bytes", c.text_bytes},
                                    {"empty", c.empty},
                                    {"filtered", c.filtered},
                                    {"malformed", c.malformed},
                                    {"files", result.files},
                                    {"shards", result.shards},
                                    {"tokens_before", result.before.tokens},
                                    {"seconds", seconds},
                                    {"mb_per_s", rate / 1e6}})
                        .dump());
}

void print_text(const PrepareArguments& a, const PrepareResult& result, double seconds, double rate,
                Output& out) {
  const PrepareCounts& c = result.counts;
  out.print("{} {}: {} tokens of {} documents ({} of text) in {} shards\n",
            result.was_complete ? "complete already:" : "wrote", a.out, c.tokens, c.documents,
            human_bytes(c.text_bytes), result.shards);
  if (c.empty + c.filtered + c.malformed > 0)
    out.print("skipped {} empty, {} filtered out, {} malformed\n", c.empty, c.filtered,
              c.malformed);
  if (!result.was_complete && result.before.tokens > 0)
    out.print("of these, an earlier run had made {} tokens\n", result.before.tokens);
  if (!result.was_complete)
    out.print("{:.1f} s, {}/s of text\n", seconds, human_bytes(static_cast<uint64_t>(rate)));
}

// Walks the run that a recipe plans and says what it reads; the proof throws where it fails.
void verify(const PrepareArguments& a, Output& out) {
  const Recipe recipe = read_recipe(a.verify);
  const auto mixture = std::make_shared<const Mixture>(recipe.data.train, recipe.train.context,
                                                       recipe.data.order, recipe.train.seed);
  std::vector<SourceUse> uses;
  {
    ProgressBar bar(ProgressBar::Unit::count);
    uses = prove_plan(mixture, recipe.loader(0, a.ranks), recipe.train.steps, bar.callback());
  }
  uint64_t blocks = 0, tokens = 0;
  for (size_t i = 0; i < uses.size(); i++) {
    out.print("{}: {} tokens in {} blocks, {:.2f} epochs\n", mixture->folder(i).path(),
              uses[i].tokens, uses[i].blocks, uses[i].epochs);
    blocks += uses[i].blocks;
    tokens += uses[i].tokens;
  }
  out.print(
      "{} steps on {} ranks: {} tokens in {} blocks, each drawn by one rank, and each block "
      "of a source once an epoch\n",
      recipe.train.steps, a.ranks, tokens, blocks);
}

void run(const PrepareArguments& a, Output& out) {
  if (!a.verify.empty()) return verify(a, out);
  if (a.inputs.empty() || a.tokenizer.empty() || a.out.empty())
    throw UsageError("prepare: want INPUT, --tokenizer and --out, or --verify RECIPE");
  const PrepareOptions options = options_of(a);
  Vocab vocab = open_vocab(a.tokenizer);
  const Tokenizer tokenizer(vocab);
  ThreadPool pool(a.threads);
  const Stopwatch watch;
  PrepareResult result;
  try {
    ProgressBar bar(ProgressBar::Unit::input);
    std::optional<std::pair<uint64_t, uint64_t>> first;  // text and bytes at the first report
    result = prepare_tokens(
        tokenizer, options, pool, [&](uint64_t done, uint64_t total, const PrepareCounts& counts) {
          if (!first) first = {counts.text_bytes, done};
          bar.update(
              progress_text(done, total, counts, first->first, first->second, watch.seconds()),
              done, total);
        });
  } catch (const Interrupted&) {
    note(fmt::format("stopped; the same command goes on behind the last shard in {}", a.out));
    throw;
  }
  write_hf_vocab(vocab, Config().context, a.out);  // what the tokens mean goes with them
  const double seconds = watch.seconds();
  const double rate =
      static_cast<double>(result.counts.text_bytes - result.before.text_bytes) / seconds;
  for (const std::string& row : result.bad_rows) note("skipped " + row);
  if (result.counts.malformed > result.bad_rows.size() && !result.bad_rows.empty())
    note(fmt::format("... {} malformed rows in all", result.counts.malformed));
  if (a.json) {
    print_json(result, seconds, rate, out);
  } else {
    print_text(a, result, seconds, rate, out);
  }
}

}  // namespace

Action prepare(Options& options) {
  auto a = std::make_shared<PrepareArguments>();
  options.add(a->inputs, {.flags = "INPUT",
                          .help = "Files and folders: .txt, .md, .jsonl, .ndjson, .json, .csv, "
                                  "also .gz and .zst of them, .parquet; - for standard input",
                          .placeholder = "PATH..."});
  options.add(a->tokenizer,
              {.flags = "--tokenizer",
               .help = "A tokenizer file or a model: tokenizer.model, tokenizer.json, .gguf",
               .placeholder = "PATH"});
  options.add(a->out, {.flags = "--out",
                       .help = "The folder to fill; a run that was stopped goes on in it",
                       .placeholder = "DIR"});
  options.add(a->verify, {.flags = "--verify",
                          .help = "Instead: prove that a run of this recipe draws each block once "
                                  "an epoch, by one rank, and print tokens by source",
                          .placeholder = "RECIPE"});
  options.add(a->ranks, {.flags = "--ranks",
                         .help = "With --verify: the machines that share the run",
                         .min = 1,
                         .max = 65536});
  options.group("What is a document");
  options.add(a->fields, {.flags = "--field",
                          .help = "Where the text is, dots lead into objects; given again: the "
                                  "next best (default: text, then content)",
                          .placeholder = "FIELD"});
  options.add(a->filters,
              {.flags = "--filter",
               .help = "Keep only rows whose field is this, or with != is not; may be given again",
               .placeholder = "FIELD=VALUE"});
  options.add(a->split,
              {.flags = "--split",
               .help = "Lines that part the documents of a text file, such as <|endoftext|>; "
                       "without it, a text file is one document",
               .placeholder = "LINE"});
  options.add(a->format, {.flags = "--format",
                          .help = "What the inputs are, whatever their names",
                          .choices = corpus_formats()});
  options.add(a->bad_rows, {.flags = "--bad-rows",
                            .help = "Malformed rows are counted and skipped, or end the work",
                            .choices = {"skip", "fail"}});
  options.group("Shards");
  options.add(a->bos, {.flags = "--bos",
                       .help = "Begin each document with the beginning-of-sequence token too; "
                               "it always ends with the end-of-sequence token"});
  options.add(a->shard_tokens, {.flags = "--shard-tokens",
                                .help = "A shard ends with the document that reaches this",
                                .min = 1,
                                .max = 1e12});
  options.add(a->part, {.flags = "--part",
                        .help = "This machine's share of the files: 1/4 to 4/4 on four machines, "
                                "into the same folder",
                        .placeholder = "I/N"});
  options.add(a->threads,
              {.flags = "--threads", .help = "Threads; 0: one per core", .min = 0, .max = 1024});
  options.add(a->json, {.flags = "--json", .help = "The summary as one JSON object"});
  options.example(
      "tinyllama prepare --tokenizer tokenizer.model --out tokens stories.txt --split "
      "\"<|endoftext|>\"",
      "a text file of many stories");
  options.example(
      "tinyllama prepare --tokenizer tokenizer.model --out tokens SlimPajama "
      "--filter set!=github",
      "a folder of .jsonl.zst, less the rows whose field says so");
  return [a](Output& out) { run(*a, out); };
}

}  // namespace tinyllama::cli
