#include "cli/bench_report.h"

#include <fmt/chrono.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "base/cpu_info.h"
#include "base/error.h"

namespace tinyllama::cli {
namespace {

using nlohmann::json;

json as_json(const Report& r) {
  json object = {{"machine",
                  {{"read_gbps", r.machine.read_gbps},
                   {"fp32_gflops", r.machine.fp32_gflops},
                   {"bf16_gflops", r.machine.bf16_gflops},
                   {"matrix_bf16_gflops", r.machine.matrix_bf16_gflops},
                   {"int8_gops", r.machine.int8_gops},
                   {"threads", r.threads},
                   {"isa", r.isa},
                   {"cpu", cpu_info().model_name}}}};
  if (!r.model) return object;
  const ModelResult& m = *r.model;
  object["model"] = {{"path", r.path}, {"type", traits(r.dtype).name}, {"kv_type", r.kv_type}};
  object["load_s"] = m.load_s;
  object["load_parts_s"] = {{"open", m.open_s}, {"tokenizer", m.tokenizer_s}, {"pack", m.pack_s}};
  object["first_token_s"] = m.first_token_s;
  object["peak_rss_mb"] = m.peak_rss_mb;
  const auto add = [](json row, const std::optional<double>& peer, json& to) {
    if (peer) row["peer_tokens_per_s"] = *peer;
    to.push_back(std::move(row));
  };
  object["prefill"] = json::array();
  for (const PrefillResult& p : m.prefill)
    add({{"tokens", p.tokens},
         {"tokens_per_s", p.tokens_per_s},
         {"fraction_of_peak", p.ops_per_s / r.peak_ops()}},
        p.peer, object["prefill"]);
  object["decode"] = json::array();
  for (const DecodeResult& d : m.decode)
    add({{"streams", d.streams},
         {"context", d.context},
         {"tokens_per_s", d.tokens_per_s},
         {"fraction_of_bandwidth", d.fraction_of_bandwidth}},
        d.peer, object["decode"]);
  if (m.tokenizer)
    object["tokenizer"] = {{"bytes", m.tokenizer->bytes},
                           {"whole_mb_per_s", m.tokenizer->whole_mb_per_s},
                           {"lines_mb_per_s", m.tokenizer->lines_mb_per_s}};
  return object;
}

// What two runs must share to be compared.
json kind_of(const json& run) {
  const json& machine = run.at("machine");
  const json& model = run.at("model");
  const std::filesystem::path path = model.at("path").get<std::string>();
  return {machine.at("cpu"), machine.at("threads"), machine.at("isa"),
          path.filename(),   model.at("type"),      model.at("kv_type")};
}

std::string versus(double now, const std::optional<double>& then) {
  return then ? fmt::format("{:+.1f} %", 100 * (now / *then - 1)) : "";
}

std::string times(double ours, const std::optional<double>& peer) {
  return peer ? fmt::format("{:.1f} ({:.2f} x)", *peer, ours / *peer) : "";
}

std::string shell_quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

// Standard output of a shell command. Throws Error when it ends with a failure.
std::string output_of(const std::string& command) {
  const auto close = [](std::FILE* pipe) { ::pclose(pipe); };
  std::unique_ptr<std::FILE, decltype(close)> pipe(::popen(command.c_str(), "r"), close);
  if (!pipe) fail(fmt::format("[bench] cannot run {}", command));
  std::string text;
  char buffer[4096];
  while (const size_t n = std::fread(buffer, 1, sizeof buffer, pipe.get())) text.append(buffer, n);
  if (::pclose(pipe.release()) != 0)
    fail(fmt::format("[bench] the peer failed: {}\n{}", command, text));
  return text;
}

template <class Items, class Text>
std::string joined(const Items& items, const Text& text) {
  std::string result;
  for (const auto& item : items) result += (result.empty() ? "" : ",") + text(item);
  return result;
}

}  // namespace

double Report::peak_ops() const {
  if (traits(dtype).quantized) return machine.int8_gops * 1e9;
  if (dtype != DType::bf16) return machine.fp32_gflops * 1e9;
  return std::max(machine.bf16_gflops, machine.matrix_bf16_gflops) * 1e9;
}

const char* Report::peak_name() const {
  if (traits(dtype).quantized) return "int8";
  if (dtype != DType::bf16) return "FP32";
  return machine.matrix_bf16_gflops > machine.bf16_gflops ? "matrix BF16" : "BF16";
}

std::string to_json(const Report& report, int indent) {
  return as_json(report).dump(indent);
}

void print(const Report& r, Output& out) {
  out.print("machine    {}, {} threads, {}\n", cpu_info().model_name, r.threads, r.isa);
  out.print(
      "           read {:.1f} GB/s; FP32 {:.0f} GFLOP/s, BF16 {:.0f} GFLOP/s{}, int8 {:.0f} "
      "GOP/s\n",
      r.machine.read_gbps, r.machine.fp32_gflops, r.machine.bf16_gflops,
      r.machine.matrix_bf16_gflops > 0
          ? fmt::format(" ({:.0f} by matrix units)", r.machine.matrix_bf16_gflops)
          : "",
      r.machine.int8_gops);
  if (!r.model) return;
  const ModelResult& m = *r.model;
  out.print("model      {} ({}, cache {})\n", r.path, traits(r.dtype).name, r.kv_type);
  out.print("load       {:.2f} s: open {:.2f}, tokenizer {:.2f}, pack {:.2f} ({:.1f} GB/s)\n",
            m.load_s, m.open_s, m.tokenizer_s, m.pack_s,
            static_cast<double>(m.weight_bytes) / m.pack_s / 1e9);
  out.print("           first token of a 16-token prompt after {:.2f} s; peak memory {:.0f} MB\n",
            m.first_token_s, m.peak_rss_mb);
  if (!r.before_date.empty() || !r.peer_name.empty()) {
    out.print("{:>70}  {:>12}  {}\n", "", r.before_date.empty() ? "" : "since " + r.before_date,
              r.peer_name);
  }
  for (const PrefillResult& p : m.prefill)
    out.print("{}\n",
              fmt::format(
                  "prefill    {:>5} tokens {:>19.1f} tokens/s {:>5.1f} % of the {:<16}  {:>12}  {}",
                  p.tokens, p.tokens_per_s, 100 * p.ops_per_s / r.peak_ops(),
                  fmt::format("{} peak", r.peak_name()), versus(p.tokens_per_s, p.before),
                  times(p.tokens_per_s, p.peer)));
  for (const DecodeResult& d : m.decode)
    out.print("{}\n", fmt::format("decode     {:>5} streams at {:>5} {:>9.1f} tokens/s {:>5.1f} % "
                                  "of the {:<16}  {:>12}  {}",
                                  d.streams, d.context, d.tokens_per_s,
                                  100 * d.fraction_of_bandwidth, "read bandwidth",
                                  versus(d.tokens_per_s, d.before), times(d.tokens_per_s, d.peer)));
  if (m.tokenizer)
    out.print("tokenizer  {:.1f} MB/s whole, {:.1f} MB/s by lines (one core, {})\n",
              m.tokenizer->whole_mb_per_s, m.tokenizer->lines_mb_per_s,
              human_bytes(m.tokenizer->bytes));
}

void compare_with_history(const std::string& path, Report& report) {
  if (!report.model) return;
  const json kind = kind_of(as_json(report));
  std::ifstream file(path);
  json last;
  for (std::string line; std::getline(file, line);) {
    json run = json::parse(line, nullptr, false);
    if (run.is_object() && run.contains("model") && run.contains("date") && kind_of(run) == kind)
      last = std::move(run);
  }
  if (last.is_null()) return;
  report.before_date = last.at("date").get<std::string>().substr(0, 10);
  for (PrefillResult& p : report.model->prefill) {
    for (const json& row : last.at("prefill"))
      if (row.at("tokens") == p.tokens) p.before = row.at("tokens_per_s");
  }
  for (DecodeResult& d : report.model->decode) {
    for (const json& row : last.at("decode"))
      if (row.at("streams") == d.streams && row.at("context") == d.context)
        d.before = row.at("tokens_per_s");
  }
}

void append_to_history(const std::string& path, const Report& report) {
  if (!report.model) return;
  json run = as_json(report);
  run["date"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  run["version"] = TINYLLAMA_VERSION;
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  std::ofstream file(path, std::ios::app);
  file << run.dump() << '\n' << std::flush;
  if (!file)
    fail(fmt::format("[bench] cannot add to the history file {}: --history names another", path));
}

void compare_with_peer(const std::string& command, int tokens, int runs, Report& report) {
  if (!report.model) return;
  ModelResult& m = *report.model;
  std::set<int64_t> contexts;
  for (const DecodeResult& d : m.decode)
    if (d.streams == 1) contexts.insert(d.context);
  const auto prompt = [](const PrefillResult& p) { return std::to_string(p.tokens); };
  const auto context = [](int64_t n) { return std::to_string(n); };
  const std::string common = fmt::format("{} -m {} -t {} -r {} -o json", command,
                                         shell_quoted(report.path), report.threads, runs);
  const auto ask = [&](const std::string& options) {
    const std::string line = common + options;
    const std::string text = output_of(line);
    json rows = json::parse(text, nullptr, false);
    if (!rows.is_array())
      fail(fmt::format("[bench] {}: want llama-bench's JSON array, got: {}", line,
                       text.substr(0, 200)));
    return rows;
  };
  if (!m.prefill.empty()) {
    for (const json& row : ask(fmt::format(" -p {} -n 0", joined(m.prefill, prompt))))
      for (PrefillResult& p : m.prefill)
        if (row.value("n_prompt", 0) == p.tokens && row.contains("avg_ts")) p.peer = row["avg_ts"];
  }
  if (!contexts.empty()) {
    for (const json& row : ask(fmt::format(" -p 0 -n {} -d {}", tokens, joined(contexts, context))))
      for (DecodeResult& d : m.decode)
        if (d.streams == 1 && row.value("n_gen", 0) > 0 && row.value("n_depth", 0) == d.context &&
            row.contains("avg_ts"))
          d.peer = row["avg_ts"];
  }
  report.peer_name = "the peer, tokens/s";
}

void compare_with_batched_peer(const std::string& command, int tokens, Report& report) {
  if (!report.model) return;
  std::map<int64_t, std::set<int64_t>> streams_at;  // by context
  for (const DecodeResult& d : report.model->decode)
    if (d.streams > 1) streams_at[d.context].insert(d.streams);
  for (const auto& [context, streams] : streams_at) {
    const int64_t positions = *streams.rbegin() * (context + tokens);
    const auto number = [](int64_t n) { return std::to_string(n); };
    const std::string line =
        fmt::format("{} -m {} -t {} -c {} -npp {} -ntg {} -npl {} --output-format jsonl", command,
                    shell_quoted(report.path), report.threads, positions, context, tokens,
                    joined(streams, number));
    const std::string text = output_of(line);
    std::istringstream lines(text);
    bool found = false;
    for (std::string row_text; std::getline(lines, row_text);) {
      const json row = json::parse(row_text, nullptr, false);
      if (!row.is_object() || !row.contains("pl") || !row.contains("speed_tg")) continue;
      for (DecodeResult& d : report.model->decode)
        if (d.streams == row["pl"] && d.context == context) d.peer = row["speed_tg"];
      found = true;
    }
    if (!found)
      fail(fmt::format("[bench] {}: want llama-batched-bench's lines of JSON, got: {}", line,
                       text.substr(0, 200)));
  }
  report.peer_name = "the peer, tokens/s";
}

}  // namespace tinyllama::cli
