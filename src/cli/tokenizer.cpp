// `tinyllama tokenizer train`: a SentencePiece BPE model made from a corpus.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/parallel.h"
#include "cli/commands.h"
#include "formats/sentencepiece_model.h"
#include "text/tokenizer_train.h"

namespace tinyllama::cli {
namespace {

namespace fs = std::filesystem;

struct TokenizerOptions {
  std::string action, out;
  std::vector<std::string> inputs;
  TokenizerTrainOptions train;
  bool keep_numbers = false, keep_scripts = false, no_space_runs = false, json = false;
  std::optional<uint64_t> max_bytes;
  int threads = 0;

  WordRules rules() const { return {!keep_numbers, !keep_scripts, !no_space_runs}; }
};

// ---- reading the corpus ----

constexpr size_t kBlock = size_t{16} << 20;  // bytes that are counted together

// How much of a text to take at most `limit` bytes of it, and at least one: to the end of a line,
// else of a word, else of a character. A function of the text alone, so that counts are.
size_t block_of(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text.size();
  for (const char end : {'\n', ' '}) {
    const size_t at = text.substr(0, limit).rfind(end);
    if (at != std::string_view::npos) return at + 1;
  }
  while (limit > 1 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) limit--;
  return limit;
}

// The text files that the inputs name: files as given, of folders every .txt below them by name.
std::vector<std::string> text_files(const std::vector<std::string>& inputs) {
  std::vector<std::string> files;
  for (const std::string& input : inputs) {
    if (input == "-" || !fs::is_directory(input)) {
      files.push_back(input);
      continue;
    }
    const size_t first = files.size();
    for (const auto& entry : fs::recursive_directory_iterator(input))
      if (entry.is_regular_file() && entry.path().extension() == ".txt")
        files.push_back(entry.path());
    if (files.size() == first)
      fail(fmt::format("[tokenizer train] {}: no .txt file in this folder", input));
    std::sort(files.begin() + static_cast<std::ptrdiff_t>(first), files.end());
  }
  return files;
}

using Consume = std::function<void(std::string_view block)>;

void read_mapped(const std::string& path, uint64_t max_bytes, const Consume& consume) {
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.size());
  const size_t wanted = block_of(text, std::min<uint64_t>(max_bytes, text.size()));
  for (size_t at = 0; at < wanted;) {
    const size_t n = block_of(text.substr(at, wanted - at), kBlock);
    consume(text.substr(at, n));
    file.drop(at, n);
    at += n;
  }
}

void read_standard_input(uint64_t max_bytes, const Consume& consume) {
  std::string text(2 * kBlock, '\0');
  size_t held = 0;
  for (uint64_t left = max_bytes; left > 0;) {
    if (!InterruptGuard::wait_for_input()) InterruptGuard::check();
    const ssize_t n =
        ::read(STDIN_FILENO, text.data() + held, std::min<uint64_t>(text.size() - held, left));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(fmt::format("[read] standard input: {}", std::strerror(errno)));
    if (n == 0) break;
    held += static_cast<size_t>(n);
    left -= static_cast<uint64_t>(n);
    if (held < text.size()) continue;
    const size_t block = block_of(text, kBlock);
    consume(std::string_view(text).substr(0, block));
    text.erase(0, block);
    held -= block;
    text.resize(2 * kBlock);
  }
  if (held > 0) consume(std::string_view(text).substr(0, held));
}

// Calls consume(block) for the inputs in order, until `max_bytes` are read.
void read_texts(const std::vector<std::string>& inputs, uint64_t max_bytes,
                const Consume& consume) {
  uint64_t left = max_bytes;
  const Consume counted = [&](std::string_view block) {
    left -= std::min<uint64_t>(left, block.size());
    consume(block);
  };
  for (const std::string& path : text_files(inputs)) {
    if (left == 0) return;
    if (path == "-") {
      read_standard_input(left, counted);
    } else {
      read_mapped(path, left, counted);
    }
  }
}

// Bytes that will be read, as far as that is known beforehand.
uint64_t size_of(const std::vector<std::string>& inputs, uint64_t max_bytes) {
  uint64_t bytes = 0;
  for (const std::string& path : text_files(inputs)) {
    std::error_code ignored;
    const auto size = path == "-" ? 0 : fs::file_size(path, ignored);
    if (!ignored) bytes += size;
  }
  return std::min(bytes, max_bytes);
}

// ---- training ----

// Each thread counts a part of a block in a table of its own; a part begins where a line does, so
// that the sum does not depend on their number.
WordCounts count_words(const TokenizerOptions& o, ThreadPool& pool) {
  const uint64_t max_bytes = o.max_bytes.value_or(UINT64_MAX);
  const uint64_t total = size_of(o.inputs, max_bytes);
  const auto n_parts = static_cast<size_t>(pool.size());
  std::vector<WordCounts> parts(n_parts, WordCounts(o.rules()));
  ProgressBar bar;
  uint64_t done = 0;
  read_texts(o.inputs, max_bytes, [&](std::string_view block) {
    bar.update("counting words", done, std::max(total, done));
    std::vector<size_t> cuts(n_parts + 1, block.size());
    cuts[0] = 0;
    for (size_t i = 1; i < n_parts; i++) {
      const size_t line = block.find('\n', std::max(cuts[i - 1], block.size() * i / n_parts));
      cuts[i] = line == std::string_view::npos ? block.size() : line + 1;
    }
    pool.run([&](int thread) {
      const auto i = static_cast<size_t>(thread);
      parts[i].add(block.substr(cuts[i], cuts[i + 1] - cuts[i]));
    });
    done += block.size();
  });
  for (size_t i = 1; i < n_parts; i++) {
    parts[0].add(parts[i]);
    parts[i] = WordCounts();
  }
  return std::move(parts[0]);
}

std::string model_of(const TokenizerOptions& o, const Vocab& vocab) {
  const WordRules rules = o.rules();
  const TrainingRecord record = {
      .character_coverage = o.train.character_coverage,
      .max_piece_length = o.train.max_piece_length,
      .split_digits = rules.split_digits,
      .split_by_unicode_script = rules.split_by_unicode_script,
      .allow_whitespace_only_pieces = rules.allow_whitespace_only_pieces,
  };
  return make_sentencepiece(vocab, &record);
}

void run(const TokenizerOptions& o, Output& out) {
  const Stopwatch watch;
  AtomicFile file(o.out);  // first of all, so that a wrong place is known before the work
  WordCounts words;
  {
    ThreadPool pool(o.threads);
    words = count_words(o, pool);
  }
  const double counted = watch.seconds();
  TrainedTokenizer trained;
  {
    ProgressBar bar(ProgressBar::Unit::count);
    trained = train_tokenizer(words, o.train, bar.callback());
  }
  file.write(model_of(o, trained.vocab));
  file.commit();
  const double bytes_per_token =
      static_cast<double>(words.n_bytes()) / static_cast<double>(trained.n_tokens);
  if (o.json) {
    return out.print("{}\n", nlohmann::json({{"out", o.out},
                                             {"pieces", trained.vocab.pieces.size()},
                                             {"merged", trained.n_merged},
                                             {"characters", trained.n_characters},
                                             {"lines", words.n_lines()},
                                             {"bytes", words.n_bytes()},
                                             {"invalid_bytes", words.n_invalid_bytes()},
                                             {"words", words.n_words()},
                                             {"distinct_words", words.size()},
                                             {"tokens", trained.n_tokens},
                                             {"bytes_per_token", bytes_per_token},
                                             {"count_s", counted},
                                             {"seconds", watch.seconds()}})
                                 .dump());
  }
  if (words.n_invalid_bytes() > 0)
    note(fmt::format("note: {} bytes that are not UTF-8 were skipped", words.n_invalid_bytes()));
  out.print("read {} in {} lines: {} words, {} distinct\n", human_bytes(words.n_bytes()),
            words.n_lines(), words.n_words(), words.size());
  out.print("wrote {}: {} pieces (259 control and bytes, {} merges, {} characters) in {:.1f} s\n",
            o.out, trained.vocab.pieces.size(), trained.n_merged, trained.n_characters,
            watch.seconds());
  out.print("The corpus is {} tokens, {:.2f} bytes each.\n", trained.n_tokens, bytes_per_token);
}

}  // namespace

Action tokenizer(Options& options) {
  auto o = std::make_shared<TokenizerOptions>();
  options.add(o->action, {.flags = "ACTION",
                          .help = "train: make a tokenizer.model that SentencePiece loads",
                          .required = true,
                          .choices = {"train"}});
  options.add(o->inputs, {.flags = "INPUT",
                          .help = "Text files, folders of .txt files, - for standard input",
                          .placeholder = "PATH",
                          .required = true});
  options.add(o->out, {.flags = "-o,--out",
                       .help = "The file to write; replaced when it exists",
                       .placeholder = "tokenizer.model",
                       .required = true});
  options.group("Vocabulary");
  options.add(o->train.vocab_size, {.flags = "--vocab-size",
                                    .help = "Pieces in all, with 3 control pieces and 256 bytes",
                                    .min = kFirstLearnedPiece + 1,
                                    .max = 1000000});
  options.add(o->train.character_coverage,
              {.flags = "--character-coverage",
               .help = "Share of the text's characters that get pieces of their own; rarer ones "
                       "are spelled in bytes",
               .min = 0.5,
               .max = 1});
  options.add(o->train.max_piece_length, {.flags = "--max-piece-length",
                                          .help = "Longest piece, in characters",
                                          .min = 1,
                                          .max = kMaxTrainedPiece});
  options.add(o->keep_numbers, {.flags = "--no-split-digits",
                                .help = "Let pieces have several digits; Llama's have one"});
  options.add(o->keep_scripts,
              {.flags = "--no-split-by-script",
               .help = "Let pieces mix letters with punctuation, and one script with another"});
  options.add(o->no_space_runs,
              {.flags = "--no-space-runs", .help = "Have no pieces of several spaces"});
  options.group("Reading");
  options.add(o->max_bytes, {.flags = "--max-bytes",
                             .help = "Read no more than this; unset: everything",
                             .placeholder = "N"});
  options.add(o->threads,
              {.flags = "--threads", .help = "Threads; 0: one per core", .min = 0, .max = 1024});
  options.group("Output");
  options.add(o->json, {.flags = "--json", .help = "One JSON object on what was read and made"});
  options.example("tinyllama tokenizer train --vocab-size 4096 --out tokenizer.model stories.txt",
                  "a tokenizer for small stories");
  options.example("zcat corpus.txt.gz | tinyllama tokenizer train --out tokenizer.model -",
                  "from what another program prints");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
