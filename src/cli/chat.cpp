// `tinyllama chat`: a conversation with a model. The conversation is a list of messages; each
// answer renders it in the model's format, lets the engine continue it, and appends what came.
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "base/error.h"
#include "base/nearest.h"
#include "cli/commands.h"
#include "cli/line_editor.h"
#include "cli/loading.h"
#include "cli/sampling.h"
#include "infer/engine.h"
#include "text/chat_template.h"

namespace tinyllama::cli {
namespace {

constexpr int64_t kRowsPerStep = 128;  // keeps Ctrl-C responsive while a long prompt is read
constexpr int kPatience = 5;           // Ctrl-C that end the program even when nothing listens

constexpr const char* kHelp =
    "Type a message; a line that ends with \\ goes on in the next one.\n"
    "  /system TEXT   set the system prompt and start afresh (alone: show it)\n"
    "  /reset         forget the conversation\n"
    "  /regen         answer the last message again\n"
    "  /undo          take the last message and its answer back\n"
    "  /save FILE     write the conversation (as JSON when FILE ends with .json)\n"
    "  /stats         show the model, its context and the speed so far\n"
    "  /quiet         show or hide the speed after each answer\n"
    "  /help          this\n"
    "  /quit          leave (or Ctrl-D)\n"
    "Ctrl-C stops the answer; at the prompt, twice, it leaves.\n";

struct ChatOptions {
  ModelOptions model;
  SamplingOptions sampling;
  std::string system, prompt;
  std::optional<std::string> chat_template;
  int64_t max_tokens = -1;
  bool quiet = false, no_history = false;
};

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

std::string dim(const std::string& text) {
  return stderr_is_terminal() ? "\x1b[2m" + text + "\x1b[0m" : text;
}

// Where the lines typed before are kept between sessions.
std::string history_path() {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  if (state != nullptr && *state != '\0') return std::string(state) + "/tinyllama/chat_history";
  if (home != nullptr && *home != '\0')
    return std::string(home) + "/.local/state/tinyllama/chat_history";
  return "";
}

class Chat {
 public:
  Chat(const ChatOptions& options, Output& out)
      : options_(options),
        out_(out),
        model_(load_model(options.model)),
        template_(options.chat_template ? ChatTemplate::named(*options.chat_template)
                                        : detect_chat_format(model_.need_tokenizer().vocab(),
                                                             model_.checkpoint.name)),
        engine_(*model_.llama, model_.tokenizer.get(),
                {.context = options.sampling.context,
                 .cache_positions = 0,
                 .rows_per_step = kRowsPerStep,
                 .kv_type = options.model.kv()}),
        quiet_(options.quiet) {
    params_ = options.sampling.params(model_.checkpoint);
    restart(options.system);
  }

  // Reads and answers until the user leaves.
  void run() {
    LineEditor editor(options_.no_history ? "" : history_path());
    if (editor.interactive()) greet();
    if (!options_.prompt.empty()) ask(options_.prompt);
    bool asked_to_leave = false;  // one Ctrl-C at the prompt has been seen
    for (std::string line; !leaving_;) {
      const LineEditor::Result result = editor.read(line);
      if (InterruptGuard::terminated()) throw Interrupted("terminated");
      if (result == LineEditor::Result::end) break;
      if (result == LineEditor::Result::interrupted) {
        if (asked_to_leave || !editor.interactive()) throw Interrupted("left with Ctrl-C");
        asked_to_leave = true;
        InterruptGuard::reset();
        note("\nCtrl-C again, or Ctrl-D, leaves.");
        continue;
      }
      asked_to_leave = false;
      handle(line);
    }
    if (editor.interactive() && !leaving_) out_.write("\n");
  }

 private:
  void greet() {
    out_.print("{}: {}, {:.1f} M parameters, {} chat format, {} positions; loaded in {:.2f} s\n",
               model_.checkpoint.name, model_.checkpoint.format,
               static_cast<double>(model_.llama->config().parameters()) / 1e6, template_.name(),
               engine_.context(), model_.load_seconds);
    if (template_.format() == ChatFormat::plain && !options_.chat_template)
      out_.print(
          "{}: it will continue your text, not answer it (--chat-template NAME sets another).\n",
          model_.tokenizer->vocab().chat_template.empty()
              ? "This model tells of no chat format"
              : "This model's chat template is none of the built-in formats");
    out_.write("/help shows the commands.\n");
    out_.flush();
  }

  void handle(const std::string& line) {
    try {
      if (line.starts_with('/')) {
        command(line);
      } else if (line.find_first_not_of(" \t\n") != std::string::npos) {
        ask(line);
      }
      out_.flush();
    } catch (const Interrupted&) {
      throw;
    } catch (const Error& error) {
      note(error.what());  // one bad message does not end the conversation
    }
  }

  void command(const std::string& line) {
    const size_t space = std::min(line.find(' '), line.size());
    const std::string name = line.substr(0, space);
    const std::string rest = line.substr(std::min(line.find_first_not_of(' ', space), line.size()));
    if (name == "/help") {
      out_.write(kHelp);
    } else if (name == "/quit" || name == "/exit") {
      leaving_ = true;
    } else if (name == "/reset") {
      restart(system_);
      out_.write("A new conversation.\n");
    } else if (name == "/system") {
      if (rest.empty()) return out_.print("{}\n", system_.empty() ? "(no system prompt)" : system_);
      restart(rest);
      out_.write("A new conversation with this system prompt.\n");
    } else if (name == "/regen") {
      regenerate();
    } else if (name == "/undo") {
      undo();
    } else if (name == "/save") {
      save(rest);
    } else if (name == "/stats") {
      print_stats();
    } else if (name == "/quiet") {
      quiet_ = !quiet_;
    } else {
      const std::string near = nearest(name, {"/help", "/quit", "/reset", "/system", "/regen",
                                              "/undo", "/save", "/stats", "/quiet"});
      out_.print("unknown command {}{}; /help shows them all\n", name,
                 near.empty() ? "" : ", did you mean " + near + "?");
    }
  }

  void restart(const std::string& system) {
    system_ = system;
    messages_.clear();
    first_ = context_used_ = 0;
    if (!system.empty()) messages_.push_back({"system", system});
  }

  void ask(const std::string& text) {
    messages_.push_back({"user", text});
    try {
      answer();
    } catch (...) {
      messages_.pop_back();
      throw;
    }
  }

  void undo() {
    while (!messages_.empty() && messages_.back().role == "assistant") messages_.pop_back();
    if (messages_.empty() || messages_.back().role != "user")
      return out_.write("Nothing to take back.\n");
    messages_.pop_back();
    first_ = 0;
    out_.write("Taken back.\n");
  }

  void regenerate() {
    if (messages_.empty() || messages_.back().role != "assistant")
      return out_.write("There is no answer yet.\n");
    const ChatMessage before = messages_.back();
    messages_.pop_back();
    try {
      answer();
    } catch (...) {
      messages_.push_back(before);
      throw;
    }
  }

  // The conversation's tokens. When it no longer leaves a quarter of the context to the answer, its
  // oldest exchanges are left out; the system prompt stays.
  std::vector<TokenId> prompt() {
    const int64_t limit = engine_.context() - engine_.context() / 4;
    for (;;) {
      std::vector<ChatMessage> shown(messages_.begin(),
                                     messages_.begin() + (system_.empty() ? 0 : 1));
      shown.insert(shown.end(), messages_.begin() + std::ssize(shown) + first_, messages_.end());
      std::vector<TokenId> ids = template_.encode(*model_.tokenizer, shown);
      const auto exchanges_left = std::ssize(shown) - (system_.empty() ? 0 : 1);
      if (static_cast<int64_t>(ids.size()) <= limit || exchanges_left < 3) return ids;
      first_ += 2;
      note(dim("(the oldest exchange no longer fits and is left out)"));
    }
  }

  Request request() {
    const ChatStops stops = template_.stops(*model_.tokenizer);
    Request r;
    r.prompt = prompt();
    r.max_tokens = options_.max_tokens;
    r.sampling = params_;
    r.stop = stops.strings;
    r.stop.insert(r.stop.end(), options_.sampling.stop.begin(), options_.sampling.stop.end());
    r.stop_tokens = stops.ids;
    r.when_full = options_.sampling.on_full();
    return r;
  }

  // Answers the last message; prints as it comes and appends the answer, also when Ctrl-C cut it
  // short.
  void answer() {
    const EngineStats before = engine_.stats();
    const Request asked = request();
    context_used_ = std::ssize(asked.prompt);
    std::string text, error;
    FinishReason finish = FinishReason::none;
    bool at_start = template_.answer_starts_with_space();
    const RequestId id = engine_.submit(asked, [&](const StreamEvent& event) {
      std::string_view piece = event.text;
      if (at_start && piece.starts_with(' ')) piece.remove_prefix(1);
      if (!event.text.empty()) at_start = false;
      if (event.token) context_used_++;
      finish = event.finish;
      error = event.error;
      text += piece;
      out_.write(piece);
      out_.flush();
    });
    if (!options_.sampling.seed) params_.seed++;  // the next answer to the same message is another
    while (engine_.busy()) {
      engine_.step();
      if (InterruptGuard::interrupted()) engine_.cancel(id);
    }
    if (InterruptGuard::terminated()) throw Interrupted("terminated");
    InterruptGuard::reset();
    if (!error.empty()) fail(error);
    out_.write(text.ends_with('\n') ? "" : "\n");
    messages_.push_back({"assistant", text});
    if (!quiet_) note_answer(before, finish);
  }

  void note_answer(const EngineStats& before, FinishReason finish) {
    out_.flush();
    const EngineStats& now = engine_.stats();
    const int64_t prompt_tokens = now.prompt_tokens - before.prompt_tokens;
    const int64_t reused = now.reused_tokens - before.reused_tokens;
    const int64_t tokens = now.generated_tokens - before.generated_tokens;
    const char* cut = finish == FinishReason::length      ? "; cut at the limit"
                      : finish == FinishReason::cancelled ? "; stopped"
                                                          : "";
    note(
        dim(fmt::format("[{} tokens, {:.1f} tokens/s; prompt {} tokens{}, {:.2f} s{}]", tokens,
                        rate(tokens, now.generate_seconds - before.generate_seconds), prompt_tokens,
                        reused > 0 ? fmt::format(" after {} still in the cache", reused) : "",
                        now.prompt_seconds - before.prompt_seconds, cut)));
  }

  void save(const std::string& path) {
    if (path.empty()) return out_.write("/save wants a file name\n");
    AtomicFile file(path);
    if (path.ends_with(".json")) {
      nlohmann::json list = nlohmann::json::array();
      for (const ChatMessage& m : messages_)
        list.push_back({{"role", m.role}, {"content", m.content}});
      file.write(list.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    } else {
      for (const ChatMessage& m : messages_)
        file.write(fmt::format("{}:\n{}\n\n", m.role, m.content));
    }
    file.commit();
    out_.print("wrote {}\n", path);
  }

  void print_stats() {
    const EngineStats& s = engine_.stats();
    out_.print("{} ({}) on {}\n", model_.checkpoint.path, model_.checkpoint.format,
               model_.backend->name());
    out_.print("context {} of {} positions\n", context_used_, engine_.context());
    out_.print("prompt {} tokens, {:.1f} tokens/s; answers {} tokens, {:.1f} tokens/s\n",
               s.prompt_tokens, rate(s.prompt_tokens, s.prompt_seconds), s.generated_tokens,
               rate(s.generated_tokens, s.generate_seconds));
  }

  const ChatOptions& options_;
  Output& out_;
  LoadedModel model_;
  ChatTemplate template_;
  Engine engine_;
  SamplerParams params_;
  std::string system_;
  std::vector<ChatMessage> messages_;  // all of them; the system prompt first when there is one
  std::ptrdiff_t first_ = 0;           // messages after the system prompt that no longer fit
  int64_t context_used_ = 0;           // positions that the last prompt and answer take
  bool quiet_ = false, leaving_ = false;
};

}  // namespace

Action chat(Options& options) {
  auto o = std::make_shared<ChatOptions>();
  options.group("Conversation");
  options.add(o->system, {.flags = "--system", .help = "The system prompt"});
  options.add(o->prompt, {.flags = "-p,--prompt", .help = "The first message"});
  options.add(o->chat_template,
              {.flags = "--chat-template",
               .help = "The chat format; unset: the model's own",
               .choices = {chat_format_names().begin(), chat_format_names().end()}});
  options.add(o->max_tokens,
              {.flags = "-n,--max-tokens",
               .help = "At most so many tokens in an answer; -1: until the context is full",
               .min = -1});
  options.add(o->quiet, {.flags = "-q,--quiet", .help = "Do not show the speed after each answer"});
  options.add(o->no_history,
              {.flags = "--no-history", .help = "Do not keep what is typed for the next session"});
  declare_sampling(options, o->sampling);
  declare_model(options, o->model);
  options.example("tinyllama chat -m MODEL", "talk; /help shows the commands");
  options.example("echo \"What is a llama?\" | tinyllama chat -m MODEL -q",
                  "one message a line, from a pipe");
  return [o](Output& out) {
    InterruptGuard::set_patience(kPatience);
    Chat(*o, out).run();
  };
}

}  // namespace tinyllama::cli
