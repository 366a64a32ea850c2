// What `tinyllama bench` found out: as a table, as JSON, beside an earlier run of the same kind and
// beside a peer.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "backend/cpu/probe.h"
#include "cli/console.h"

namespace tinyllama::cli {

struct PrefillResult {
  int64_t tokens = 0;
  double tokens_per_s = 0, ops_per_s = 0;
  std::optional<double> before, peer;  // tokens/s
};
struct DecodeResult {
  int64_t streams = 0, context = 0;
  double tokens_per_s = 0;           // of all streams together
  double fraction_of_bandwidth = 0;  // of reads in turns with the tokens
  std::optional<double> before, peer;
};
struct TokenizerResult {
  uint64_t bytes = 0;
  double whole_mb_per_s = 0, lines_mb_per_s = 0;
};
struct ModelResult {
  double load_s = 0, first_token_s = 0, peak_rss_mb = 0;
  double open_s = 0, tokenizer_s = 0, pack_s = 0;  // parts of load_s
  uint64_t weight_bytes = 0;                       // that one token reads
  std::vector<PrefillResult> prefill;
  std::vector<DecodeResult> decode;
  std::optional<TokenizerResult> tokenizer;
};

struct Report {
  MachinePeaks machine;
  int threads = 0;
  std::string isa, path, kv_type;
  DType dtype = DType::f32;  // of the model's weights
  std::optional<ModelResult> model;
  std::string before_date, peer_name;

  // The arithmetic limit of products with these weights, operations a second, and its name.
  double peak_ops() const;
  const char* peak_name() const;
};

// The JSON object of `bench --json`, indented by `indent` (-1: one line).
std::string to_json(const Report& report, int indent);
void print(const Report& report, Output& out);

// Fills in `before` from the last run in the history file at `path` that had the same processor,
// threads, instruction set, model, and types.
void compare_with_history(const std::string& path, Report& report);
// Adds this run to the file, a line of JSON. Throws Error when it cannot be written.
void append_to_history(const std::string& path, const Report& report);

// Fills in `peer` on the same file. Each throws Error with what the command printed when it is not
// what was asked for. One sequence: `command` with llama-bench's options (-m -p -n -d -t -r -o
// json) and its JSON array; several: with llama-batched-bench's (-m -t -npp -ntg -npl
// --output-format jsonl) and its lines of JSON.
void compare_with_peer(const std::string& command, int tokens, int runs, Report& report);
void compare_with_batched_peer(const std::string& command, int tokens, Report& report);

}  // namespace tinyllama::cli
