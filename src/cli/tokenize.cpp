// `tinyllama tokenize`: text to token ids, line by line or whole, and ids back to text.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "formats/checkpoint.h"
#include "text/tokenizer.h"

namespace tinyllama::cli {
namespace {

struct TokenizeOptions {
  std::string model, prompt, file, decode;
  bool ids = false, lines = false, bos = false, special = false, json = false, count = false;
};

// Appends "1,2,3", or "1 2 3" with the separator asked for.
void append_ids(std::span<const TokenId> ids, char separator, std::string& to) {
  for (size_t i = 0; i < ids.size(); i++) {
    if (i > 0) to += separator;
    fmt::format_to(std::back_inserter(to), "{}", ids[i]);
  }
}

void print_lines(const TokenizeOptions& o, const Tokenizer& tokenizer, std::string_view text,
                 Output& out) {
  EncodeScratch scratch;
  std::vector<TokenId> ids;
  std::string line_out;
  while (!text.empty()) {
    InterruptGuard::check();
    const size_t end = std::min(text.find('\n'), text.size());
    ids.clear();
    tokenizer.encode(text.substr(0, end), {.add_bos = o.bos, .parse_special = o.special}, scratch,
                     ids);
    line_out.clear();
    if (o.count) {
      fmt::format_to(std::back_inserter(line_out), "{}", ids.size());
    } else {
      append_ids(ids, ' ', line_out);
    }
    line_out += '\n';
    out.write(line_out);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

void print_table(const Tokenizer& tokenizer, std::span<const TokenId> ids, Output& out) {
  for (const TokenId id : ids) out.print("{:>7}  {}\n", id, tokenizer.piece(id));
}

void print_whole(const TokenizeOptions& o, const Tokenizer& tokenizer, std::string_view text,
                 Output& out) {
  const std::vector<TokenId> ids =
      tokenizer.encode(text, {.add_bos = o.bos, .parse_special = o.special});
  if (o.json) {
    out.print("{}\n", nlohmann::json({{"ids", ids}, {"count", ids.size()}}).dump());
  } else if (o.count) {
    out.print("{}\n", ids.size());
  } else if (o.ids) {
    std::string line;
    append_ids(ids, ' ', line);
    out.print("{}\n", line);
  } else {
    print_table(tokenizer, ids, out);
  }
}

void run(const TokenizeOptions& o, Output& out) {
  const int sources = static_cast<int>(!o.prompt.empty()) + static_cast<int>(!o.file.empty()) +
                      static_cast<int>(!o.decode.empty());
  if (sources > 1) throw UsageError("give one of -p, --file and --decode");
  if (o.lines && o.json) throw UsageError("--lines prints plain lines: leave out --json");
  const Tokenizer tokenizer(open_vocab(resolve_model(o.model)));
  if (!o.decode.empty()) {
    const std::vector<TokenId> ids = parse_ids(o.decode, "--decode");
    return out.print("{}\n", tokenizer.decode(ids, {.render_control = o.special}));
  }
  const std::string text = !o.prompt.empty() ? o.prompt : read_input(o.file.empty() ? "-" : o.file);
  if (o.lines) return print_lines(o, tokenizer, text, out);
  print_whole(o, tokenizer, text, out);
}

}  // namespace

Action tokenize(Options& options) {
  auto o = std::make_shared<TokenizeOptions>();
  options.group("Input");
  options.add(
      o->model,
      {.flags = "-m,--model",
       .help = "A model, or a tokenizer file: tokenizer.model, tokenizer.json, tok*.bin, .gguf",
       .placeholder = "PATH"});
  options.add(o->prompt, {.flags = "-p,--prompt", .help = "The text"});
  options.add(o->file, {.flags = "-f,--file",
                        .help = "The text from a file; - for standard input (the default)",
                        .placeholder = "FILE"});
  options.add(o->lines, {.flags = "--lines",
                         .help = "Each line of the input by itself: one line of ids for each"});
  options.add(o->bos, {.flags = "--bos", .help = "Start with the beginning-of-sequence token"});
  options.add(o->special,
              {.flags = "--special",
               .help = "Read control tokens such as </s> as tokens; with --decode, show them"});
  options.add(o->decode, {.flags = "--decode",
                          .help = "The other way: the text of these ids",
                          .placeholder = "1,2,3"});
  options.group("Output");
  options.add(o->ids, {.flags = "--ids",
                       .help = "Ids, separated by spaces; without it, a table of ids and pieces"});
  options.add(o->count, {.flags = "--count", .help = "Only how many tokens"});
  options.add(o->json, {.flags = "--json", .help = "One JSON object: ids, count"});
  options.example("tinyllama tokenize -m MODEL -p \"Hello world\"", "a table of tokens");
  options.example("tinyllama tokenize -m tokenizer.model --file corpus.txt --ids --lines",
                  "one line of ids per line");
  options.example("tinyllama tokenize -m MODEL --decode 1,15043,3186", "\"Hello world\"");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
