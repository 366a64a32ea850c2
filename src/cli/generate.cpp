// `tinyllama generate`: continues a prompt, or answers it in a chat model's format, as text or as
// JSON.
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "cli/sampling.h"
#include "infer/engine.h"
#include "text/chat_template.h"

namespace tinyllama::cli {
namespace {

using nlohmann::json;

struct GenerateOptions {
  ModelOptions model;
  SamplingOptions sampling;
  std::string prompt, file, ids, system;
  std::optional<std::string> chat_template;
  int64_t max_tokens = 256;
  int n = 1;
  int logprobs = -1;
  bool chat = false, no_bos = false, special = false, ignore_eos = false, echo = false,
       json = false, stats = false;
};

// One sample as it grows.
struct Answer {
  std::vector<TokenId> ids;
  std::vector<Sampled> sampled;
  std::string text;
  FinishReason finish = FinishReason::none;
};

const char* finish_name(FinishReason finish) {
  switch (finish) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::none:
      break;
  }
  return "none";
}

std::string prompt_text(const GenerateOptions& o) {
  if (o.file.empty()) return o.prompt;
  std::string text = read_input(o.file);
  while (text.ends_with('\n'))
    text.pop_back();  // an editor's last line end is no part of the prompt
  return text;
}

ChatTemplate chat_template(const GenerateOptions& o, const LoadedModel& model) {
  if (o.chat_template) return ChatTemplate::named(*o.chat_template);
  return detect_chat_format(model.tokenizer->vocab(), model.checkpoint.name);
}

void fill_from_chat(const GenerateOptions& o, const LoadedModel& model, Request& request) {
  std::vector<ChatMessage> messages;
  if (!o.system.empty()) messages.push_back({"system", o.system});
  messages.push_back({"user", prompt_text(o)});
  const ChatTemplate format = chat_template(o, model);
  request.prompt = format.encode(model.need_tokenizer(), messages);
  const ChatStops stops = format.stops(*model.tokenizer);
  request.stop.insert(request.stop.end(), stops.strings.begin(), stops.strings.end());
  request.stop_tokens = stops.ids;
}

void fill_from_text(const GenerateOptions& o, const LoadedModel& model, Request& request) {
  const Tokenizer& tokenizer = model.need_tokenizer();
  const std::string text = prompt_text(o);
  request.prompt = o.no_bos ? tokenizer.encode(text, {.parse_special = o.special})
                            : tokenizer.encode_prompt(text, o.special);
}

Request make_request(const GenerateOptions& o, const LoadedModel& model) {
  Request request;
  request.sampling = o.sampling.params(model.checkpoint);
  request.stop = o.sampling.stop;
  request.when_full = o.sampling.on_full();
  request.max_tokens = o.max_tokens;
  request.n = o.n;
  request.n_logprobs = o.logprobs;
  if (!o.ids.empty()) {
    request.prompt = parse_ids(o.ids, "--ids");
  } else if (o.chat || o.chat_template) {
    fill_from_chat(o, model, request);
  } else {
    fill_from_text(o, model, request);
  }
  if (request.stop_tokens.empty() && model.checkpoint.vocab) {
    const Vocab& vocab = *model.checkpoint.vocab;
    if (vocab.eos != kNoToken) request.stop_tokens.push_back(vocab.eos);
    request.stop_tokens.insert(request.stop_tokens.end(), vocab.extra_eos.begin(),
                               vocab.extra_eos.end());
  }
  if (o.ignore_eos) request.stop_tokens.clear();
  return request;
}

json logprobs_json(const std::vector<Sampled>& sampled) {
  json list = json::array();
  for (const Sampled& s : sampled) {
    json top = json::array();
    for (const TokenLogprob& t : s.top) top.push_back({{"id", t.token}, {"logprob", t.logprob}});
    list.push_back({{"id", s.token}, {"logprob", s.logprob}, {"top", std::move(top)}});
  }
  return list;
}

json answer_json(const Answer& answer, bool with_text, bool with_logprobs) {
  json object = {{"ids", answer.ids}, {"finish", finish_name(answer.finish)}};
  if (with_text) object["text"] = answer.text;
  if (with_logprobs) object["logprobs"] = logprobs_json(answer.sampled);
  return object;
}

// A time without digits that mean nothing.
double microseconds(double seconds) {
  return std::round(seconds * 1e6) / 1e6;
}

void print_json(const GenerateOptions& o, const Request& request, const LoadedModel& model,
                const Engine& engine, const std::vector<Answer>& answers, Output& out) {
  const EngineStats& stats = engine.stats();
  const bool text = model.tokenizer != nullptr, logprobs = o.logprobs >= 0;
  json object = answer_json(answers.front(), text, logprobs);
  object["prompt_ids"] = request.prompt;
  object["seed"] = request.sampling.seed;
  if (answers.size() > 1)
    for (const Answer& answer : answers)
      object["samples"].push_back(answer_json(answer, text, logprobs));
  object["stats"] = {{"load_s", microseconds(model.load_seconds)},
                     {"prompt_tokens", stats.prompt_tokens},
                     {"prompt_s", microseconds(stats.prompt_seconds)},
                     {"generated_tokens", stats.generated_tokens},
                     {"generate_s", microseconds(stats.generate_seconds)}};
  out.print("{}\n", object.dump(-1, ' ', false, json::error_handler_t::replace));
}

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

void note_stats(const LoadedModel& model, const EngineStats& stats) {
  note(fmt::format(
      "loaded in {:.2f} s; prompt {} tokens, {:.1f} tokens/s; answer {} tokens, {:.1f} tokens/s",
      model.load_seconds, stats.prompt_tokens, rate(stats.prompt_tokens, stats.prompt_seconds),
      stats.generated_tokens, rate(stats.generated_tokens, stats.generate_seconds)));
}

// Several samples, one after another; ids where the model has no tokenizer.
void print_answers(const GenerateOptions& o, const LoadedModel& model,
                   const std::vector<Answer>& answers, Output& out) {
  for (size_t i = 0; i < answers.size(); i++) {
    if (o.n > 1) out.print("{}--- sample {} of {}\n", i > 0 ? "\n" : "", i + 1, o.n);
    if (model.tokenizer != nullptr) {
      out.print("{}\n", answers[i].text);
    } else {
      out.print("{}\n", fmt::join(answers[i].ids, ","));
    }
  }
}

// What an event adds to a stream for people: its text, or "12," where the model has no tokenizer.
std::string shown(const StreamEvent& event, bool as_text, bool first) {
  if (as_text) return event.text;
  return event.token ? fmt::format("{}{}", first ? "" : ",", event.token->token) : "";
}

// Runs the request; streams the answer when it is the only thing to print.
std::vector<Answer> run_request(const Request& request, Engine& engine, bool stream, bool as_text,
                                Output& out) {
  std::vector<Answer> answers(static_cast<size_t>(request.n));
  engine.submit(request, [&](const StreamEvent& event) {
    Answer& answer = answers.at(static_cast<size_t>(event.sample));
    const std::string text = shown(event, as_text, answer.ids.empty());
    if (event.token) {
      answer.ids.push_back(event.token->token);
      if (request.n_logprobs >= 0) answer.sampled.push_back(*event.token);
    }
    answer.text += event.text;
    answer.finish = event.finish;
    if (!event.error.empty()) fail(event.error);
    if (!stream || text.empty()) return;
    out.write(text);
    out.flush();
  });
  while (engine.busy()) {
    InterruptGuard::check();
    engine.step();
  }
  return answers;
}

void run(const GenerateOptions& o, Output& out) {
  const int prompts =
      (o.ids.empty() ? 0 : 1) + (o.prompt.empty() ? 0 : 1) + (o.file.empty() ? 0 : 1);
  if (prompts > 1 || (prompts == 0 && o.no_bos))
    throw UsageError("give one prompt: -p TEXT, --file FILE or --ids 1,2,3");
  const LoadedModel model = load_model(o.model);
  const Request request = make_request(o, model);
  Engine engine(*model.llama, model.tokenizer.get(),
                {.context = o.sampling.context,
                 .cache_positions = 0,
                 .rows_per_step = 512,
                 .kv_type = o.model.kv()});
  const bool stream = !o.json && o.n == 1, as_text = model.tokenizer != nullptr;
  if (stream && as_text && o.echo)
    out.write(o.ids.empty() ? prompt_text(o) : model.tokenizer->decode(request.prompt));
  const std::vector<Answer> answers = run_request(request, engine, stream, as_text, out);
  if (o.json) {
    print_json(o, request, model, engine, answers, out);
  } else if (stream) {
    out.write("\n");
  } else {
    print_answers(o, model, answers, out);
  }
  if (o.stats) note_stats(model, engine.stats());
}

}  // namespace

Action generate(Options& options) {
  auto o = std::make_shared<GenerateOptions>();
  options.group("Prompt");
  options.add(o->prompt, {.flags = "-p,--prompt", .help = "The text to continue"});
  options.add(o->file,
              {.flags = "-f,--file",
               .help = "The prompt from a file, without its last line end; - for standard input",
               .placeholder = "FILE"});
  options.add(
      o->ids,
      {.flags = "--ids",
       .help = "The prompt as token ids, used as given: nothing is prepended and no tokenizer "
               "is needed",
       .placeholder = "1,2,3"});
  options.add(o->no_bos,
              {.flags = "--no-bos", .help = "Do not start with the beginning-of-sequence token"});
  options.add(o->special, {.flags = "--special",
                           .help = "Read control tokens such as </s> in the prompt as tokens"});
  options.add(o->chat, {.flags = "--chat", .help = "Put the prompt into the model's chat format"});
  options.add(o->chat_template,
              {.flags = "--chat-template",
               .help = "As --chat, in this format",
               .choices = {chat_format_names().begin(), chat_format_names().end()}});
  options.add(o->system, {.flags = "--system", .help = "The system prompt, with --chat"});
  options.group("Answer");
  options.add(o->max_tokens, {.flags = "-n,--max-tokens",
                              .help = "At most so many new tokens; -1: until the context is full",
                              .min = -1});
  options.add(
      o->n,
      {.flags = "--n", .help = "Independent answers to the one prompt", .min = 1, .max = 1024});
  options.add(o->logprobs,
              {.flags = "--logprobs",
               .help = "With --json: each token's log-probability and the K likeliest; -1: none",
               .placeholder = "K",
               .min = -1,
               .max = 1000});
  options.add(o->ignore_eos,
              {.flags = "--ignore-eos", .help = "Go on after an end-of-sequence token"});
  options.add(o->echo, {.flags = "--echo", .help = "Print the prompt before the answer"});
  options.add(o->json,
              {.flags = "--json",
               .help = "Print one JSON object: ids, text, finish, prompt_ids, seed, stats"});
  options.add(o->stats, {.flags = "--stats", .help = "Print the speed to standard error"});
  declare_sampling(options, o->sampling);
  declare_model(options, o->model);
  options.example("tinyllama generate -m MODEL -p \"Once upon a time\" -n 100",
                  "a story of up to 100 tokens");
  options.example("tinyllama generate -m MODEL --ids 1,9038,2501 -n 8 --temperature 0 --json",
                  "greedy, from ids to ids");
  options.example("tinyllama generate -m MODEL --chat -p \"What is a llama?\"",
                  "one answer of a chat model");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
