// Finding, opening and packing a model for the subcommands, see loading.h.
#include "cli/loading.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"

namespace tinyllama::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHowToGetOne =
    "no model found. Give one with -m (a Hugging Face folder, a .gguf or a llama2.c .bin), or put "
    "one into\n"
    "~/.cache/tinyllama or ./models, where it is found by itself. To get TinyLlama's chat model "
    "(669 MB):\n"
    "  curl -L --create-dirs -o ~/.cache/tinyllama/tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf \\\n"
    "    https://huggingface.co/TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF/resolve/main/"
    "tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf\n"
    "or its original, to convert or quantize yourself (2.2 GB):\n"
    "  git clone https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0 "
    "models/TinyLlama-1.1B-Chat-v1.0\n"
    "Without a network, a model of random weights shows that everything works:\n"
    "  tinyllama init --preset tinyllama-120m --out models/random";

struct Candidate {
  std::string path;
  bool chat;
  uintmax_t bytes;
};

bool looks_like_chat(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return name.find("chat") != std::string::npos || name.find("instruct") != std::string::npos;
}

uintmax_t folder_bytes(const fs::path& folder) {
  uintmax_t total = 0;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (entry.is_regular_file(ignored)) total += entry.file_size(ignored);
  return total;
}

void add_candidates(const fs::path& folder, std::vector<Candidate>& to) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const fs::path& path = entry.path();
    const bool chat = looks_like_chat(path.filename());
    if (entry.is_directory(ignored) && fs::exists(path / "config.json", ignored)) {
      to.push_back({path, chat, folder_bytes(path)});
    } else if (entry.is_regular_file(ignored) && path.extension() == ".gguf") {
      to.push_back({path, chat, entry.file_size(ignored)});
    }
  }
}

std::vector<fs::path> model_folders() {
  std::vector<fs::path> folders;
  const std::string cache = environment("XDG_CACHE_HOME"), home = environment("HOME");
  if (!cache.empty()) {
    folders.push_back(fs::path(cache) / "tinyllama");
  } else if (!home.empty()) {
    folders.push_back(fs::path(home) / ".cache" / "tinyllama");
  }
  folders.emplace_back("models");
  return folders;
}

}  // namespace

std::optional<DType> ModelOptions::kv() const {
  if (!kv_type) return std::nullopt;
  return dtype_from_name(*kv_type);
}

void declare_machine(Options& options, ModelOptions& model) {
  options.group("Machine");
  options.add(model.threads,
              {.flags = "--threads", .help = "Threads; 0: one per core", .min = 0, .max = 1024});
  options.add(model.isa, {.flags = "--isa",
                          .help = "Instruction set; unset: the best this processor has",
                          .choices = cpu_isas()});
}

void declare_model(Options& options, ModelOptions& model) {
  options.group("Model");
  options.add(model.model,
              {.flags = "-m,--model",
               .help = "A Hugging Face folder, a .gguf or a llama2.c .bin; unset: "
                       "$TINYLLAMA_MODEL, else the best in ~/.cache/tinyllama and ./models",
               .placeholder = "PATH"});
  options.add(model.kv_type,
              {.flags = "--kv-type",
               .help = "Type of cached keys and values; unset: the weights' own float type, "
                       "f16 for quantized ones; q8_0 halves f16's memory",
               .choices = {"f32", "f16", "bf16", "q8_0"}});
  declare_machine(options, model);
}

std::string resolve_model(const std::string& path) {
  if (!path.empty()) return path;
  std::string named = environment("TINYLLAMA_MODEL");
  if (!named.empty()) return named;
  std::vector<Candidate> candidates;
  for (const fs::path& folder : model_folders()) add_candidates(folder, candidates);
  if (candidates.empty()) fail(kHowToGetOne);
  const auto best = std::max_element(
      candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
        return std::tie(a.chat, a.bytes, b.path) < std::tie(b.chat, b.bytes, a.path);
      });
  note(fmt::format("Using {}", best->path));
  return best->path;
}

const Tokenizer& LoadedModel::need_tokenizer() const {
  if (tokenizer) return *tokenizer;
  fail(fmt::format(
      "{} has no tokenizer: put tokenizer.model or tokenizer.json beside it, or work with token "
      "ids (--ids)",
      checkpoint.path));
}

LoadedModel load_model(const ModelOptions& options) {
  const Stopwatch watch;
  LoadedModel loaded;
  double so_far = 0;
  const auto lap = [&] {
    const double now = watch.seconds();
    return now - std::exchange(so_far, now);
  };
  loaded.checkpoint = open_checkpoint(resolve_model(options.model));
  for (const std::string& text : loaded.checkpoint.notes) note("note: " + text);
  loaded.open_seconds = lap();
  loaded.backend = make_cpu({.threads = options.threads, .isa = options.isa});
  if (loaded.checkpoint.vocab)
    loaded.tokenizer = std::make_unique<Tokenizer>(*loaded.checkpoint.vocab);
  loaded.tokenizer_seconds = lap();
  ProgressBar bar;
  loaded.llama = std::make_unique<Llama>(*loaded.backend, loaded.checkpoint, bar.callback());
  loaded.pack_seconds = lap();
  loaded.load_seconds = watch.seconds();
  return loaded;
}

std::string read_input(const std::string& path) {
  if (path != "-") {
    const MappedFile file(path);
    return {reinterpret_cast<const char*>(file.bytes().data()), file.size()};
  }
  std::string text;
  std::vector<char> buffer(size_t{1} << 16);
  for (;;) {
    if (!InterruptGuard::wait_for_input()) InterruptGuard::check();
    const ssize_t n = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(fmt::format("[read] standard input: {}", std::strerror(errno)));
    if (n == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(n));
  }
}

}  // namespace tinyllama::cli
