// What most subcommands start with: the options that name a model and how to run it, and the loaded
// pieces in the order in which they need each other.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cli/console.h"
#include "cli/options.h"
#include "formats/checkpoint.h"
#include "model/llama.h"
#include "text/tokenizer.h"

namespace tinyllama::cli {

struct ModelOptions {
  std::string model;  // a path; empty: the best model found
  int threads = 0;
  std::string isa;
  std::optional<std::string> kv_type;

  std::optional<DType> kv() const;
};

void declare_model(Options& options, ModelOptions& model);
// --threads and --isa alone, for what runs without a model.
void declare_machine(Options& options, ModelOptions& model);

// The model that `options` name; with none named, $TINYLLAMA_MODEL, else the best one in
// ~/.cache/tinyllama and ./models (chat models first, then the largest). Throws Error that says how
// to get one when there is none.
std::string resolve_model(const std::string& path);

// A model ready to run. Members refer to those above them.
struct LoadedModel {
  Checkpoint checkpoint;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Tokenizer> tokenizer;  // null when the model has none
  std::unique_ptr<Llama> llama;
  double load_seconds = 0;
  double open_seconds = 0, tokenizer_seconds = 0, pack_seconds = 0;  // its parts

  // Throws Error that names the remedy when the model has no tokenizer.
  const Tokenizer& need_tokenizer() const;
};

// Opens, packs and shows progress; prints the checkpoint's notes.
LoadedModel load_model(const ModelOptions& options);

// The bytes of a text file, or of standard input for "-".
std::string read_input(const std::string& path);

}  // namespace tinyllama::cli
