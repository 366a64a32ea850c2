// The program's entry: finds the subcommand, runs it, and turns what it throws into a message and
// an exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/nearest.h"
#include "cli/commands.h"

namespace tinyllama::cli {
namespace {

struct Command {
  const char* name;
  Action (*declare)(Options&);
  const char* summary;
};

constexpr Command kCommands[] = {
    {"chat", chat, "Talk to a model"},
    {"generate", generate, "Continue a prompt"},
    {"tokenize", tokenize, "Turn text into token ids, and back"},
    {"tokenizer", tokenizer, "Make a tokenizer from texts: tokenizer train"},
    {"info", info, "Show what a model is and what it needs"},
    {"convert", convert, "Convert a model to a Hugging Face folder or a GGUF file"},
    {"quantize", quantize, "Write a smaller GGUF file: 4 or 8 bits a weight"},
    {"logits", logits, "Write the logits of given tokens, for verification"},
    {"perplexity", perplexity, "Measure how well a model predicts a text"},
    {"init", init, "Make a model of random weights"},
    {"prepare", prepare, "Turn a corpus into packed tokens, for training"},
    {"pretrain", pretrain, "Train a model from tokens, by a recipe"},
    {"plot", plot, "Draw the curves of training runs"},
    {"bench", bench, "Measure this machine and a model on it"},
};

constexpr int kUsage = 2, kFailed = 1, kInterrupted = 130;

std::string help() {
  std::string text =
      "tinyllama runs TinyLlama and its relatives on this machine.\n\n"
      "Usage: tinyllama COMMAND [options]\n\nCommands:\n";
  for (const Command& command : kCommands)
    text += fmt::format("  {:<12}{}\n", command.name, command.summary);
  return text +
         "\nOptions:\n"
         "  -h,--help   Show this, or with a command, all of its options\n"
         "  --version   Show the version\n\n"
         "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n"
         "Environment: TINYLLAMA_MODEL names the model where -m is not given.\n";
}

const Command& find_command(const std::string& name) {
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (name == command.name) return command;
    names.emplace_back(command.name);
  }
  const std::string near = nearest(name, names);
  throw UsageError(fmt::format("unknown {} '{}'{}", name.starts_with("-") ? "option" : "command",
                               name, near.empty() ? "" : fmt::format(", did you mean {}?", near)));
}

bool is_command(const std::string& name) {
  return std::any_of(std::begin(kCommands), std::end(kCommands),
                     [&](const Command& command) { return name == command.name; });
}

void run(const std::vector<std::string>& arguments, Output& out) {
  const std::string& first = arguments.front();
  if (first == "-h" || first == "--help" || first == "help") return out.write(help());
  if (first == "--version") return out.write("tinyllama " TINYLLAMA_VERSION "\n");
  const Command& command = find_command(first);
  Options options(command.name, command.summary);
  const Action action = command.declare(options);
  const std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  const bool wants_help = std::any_of(rest.begin(), rest.end(), [](const std::string& argument) {
    return argument == "-h" || argument == "--help";
  });
  if (wants_help) return out.write(options.help());
  options.parse(rest);
  const InterruptGuard guard;
  action(out);
  InterruptGuard::check();
}

// Runs and reports; the exit code.
int main_checked(const std::vector<std::string>& arguments) {
  Output out;
  try {
    if (arguments.empty()) throw UsageError("want a command");
    run(arguments, out);
    out.flush();
    return 0;
  } catch (const OutputClosed&) {
    return 0;  // `| head` has seen enough
  } catch (const UsageError& error) {
    const bool named = !arguments.empty() && is_command(arguments.front());
    fmt::print(stderr, "tinyllama: {}\n", error.what());
    if (arguments.empty()) {
      fmt::print(stderr, "\n{}", help());
    } else {
      fmt::print(stderr, "See: tinyllama {}--help\n", named ? arguments.front() + " " : "");
    }
    return kUsage;
  } catch (const Interrupted&) {
    return kInterrupted;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "tinyllama: not enough memory\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "tinyllama: {}\n", error.what());
  }
  return kFailed;
}

}  // namespace
}  // namespace tinyllama::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of write(), not our death
  return tinyllama::cli::main_checked({argv + 1, argv + argc});
}
