// The output folder of `prepare`, see prepare_folder.h.
#include "data/prepare_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json plan_of(const PrepareOptions& options, const ShardVocab& vocab,
             const std::vector<CorpusFile>& files) {
  json filters = json::array(), sources = json::array();
  for (const RowFilter& filter : options.corpus.filters)
    filters.push_back(filter.field + (filter.equal ? "=" : "!=") + filter.value);
  for (const CorpusFile& file : files)
    sources.push_back({{"path", file.path},
                       {"bytes", file.bytes},
                       {"format", corpus_formats()[static_cast<size_t>(file.format)]}});
  return {{"options",
           {{"tokenizer", fmt::format("{:016x}", vocab.fingerprint)},
            {"vocab_size", vocab.vocab_size},
            {"eos", vocab.eos},
            {"bos", options.bos},
            {"field", options.corpus.fields},
            {"filter", filters},
            {"split", options.corpus.separator},
            {"shard_tokens", options.shard_tokens},
            {"part", fmt::format("{}/{}", options.part, options.parts)}}},
          {"sources", sources}};
}

json json_of(const PrepareCounts& counts) {
  return {{"documents", counts.documents},   {"tokens", counts.tokens},
          {"text_bytes", counts.text_bytes}, {"empty", counts.empty},
          {"filtered", counts.filtered},     {"malformed", counts.malformed}};
}

PrepareCounts counts_of(const json& from) {
  return {from.at("documents"), from.at("tokens"),   from.at("text_bytes"),
          from.at("empty"),     from.at("filtered"), from.at("malformed")};
}

void write_json(const std::string& path, const json& what) {
  AtomicFile file(path);
  // A path is bytes, JSON is UTF-8.
  file.write(what.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
  file.commit();
}

json read_json(const std::string& path) {
  json value = json::parse(read_text_file(path, size_t{1} << 30), nullptr, false);
  if (!value.is_object())
    fail(
        fmt::format("[prepare] {}: want a JSON object as prepare writes it, got something else: "
                    "remove the folder to start anew",
                    path));
  return value;
}

// In which way the plan of a folder differs from the present one; empty when it does not.
std::string difference(const json& before, const json& now) {
  const json was = before.value("options", json::object());
  for (const auto& [name, value] : now.at("options").items()) {
    const json old = was.value(name, json());
    if (old != value) return fmt::format("{} was {}, now it is {}", name, old.dump(), value.dump());
  }
  const json& sources = now.at("sources");
  const json old = before.value("sources", json::array());
  for (size_t i = 0; i < std::max(old.size(), sources.size()); i++) {
    const json a = i < old.size() ? old[i] : json(), b = i < sources.size() ? sources[i] : json();
    if (a != b)
      return fmt::format("input {} was {}, now it is {}", i + 1, a.is_null() ? "absent" : a.dump(),
                         b.is_null() ? "absent" : b.dump());
  }
  return "";
}

}  // namespace

PrepareFolder::PrepareFolder(const PrepareOptions& options, const ShardVocab& vocab,
                             const std::vector<CorpusFile>& files)
    : path_(options.out) {
  if (options.parts > 1) series_ = fmt::format("-{:04}-of-{:04}", options.part, options.parts);
  // Through text and back, so that it compares with what was read.
  plan_ = plan_of(options, vocab, files).dump(-1, ' ', false, json::error_handler_t::replace);
  for (const CorpusFile& source : files) resumable_ &= source.path != "-";
  std::error_code code;
  fs::create_directories(path_, code);
  if (code) fail(fmt::format("[prepare] {}: {}", path_, code.message()));
  refuse_strangers();
  // What a killed run was writing.
  for (const std::string& begin : {"shard" + series_ + "-", "manifest" + series_ + ".json",
                                   std::string(kUnfinished) + series_ + ".json"})
    remove_own(begin, ".partial");
  if (fs::exists(file("manifest", ".json"))) {
    resume();
  } else {
    begin();
  }
}

std::string PrepareFolder::file(const std::string& stem, const std::string& suffix) const {
  return path_ + "/" + stem + series_ + suffix;
}

// Shards must be of one preparation: nobody could tell them apart later.
void PrepareFolder::refuse_strangers() const {
  const std::string own = "manifest" + series_ + ".json";
  const std::string others = series_.empty() ? own : series_.substr(5) + ".json";  // "-of-0004"
  bool manifest = false, shards = false;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(path_, code)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("manifest") && name.ends_with(".json")) {
      manifest = true;
      if (name == own || (!series_.empty() && name.ends_with(others))) continue;
      fail(
          fmt::format("[prepare] {}: it holds {}, of a preparation in another number of parts: "
                      "give another --out, or remove it",
                      path_, name));
    }
    shards |= name.ends_with(kShardSuffix) || name.ends_with(".bin");
  }
  if (code) fail(fmt::format("[prepare] {}: {}", path_, code.message()));
  if (shards && !manifest)
    fail(
        fmt::format("[prepare] {}: it holds token shards that no manifest tells of: give another "
                    "--out, or remove them",
                    path_));
}

void PrepareFolder::resume() {
  const std::string manifest = file("manifest", ".json"), note = file(kUnfinished, ".json");
  try {
    const json before = read_json(manifest);
    const std::string differs = difference(before, json::parse(plan_));
    if (!differs.empty())
      fail(
          fmt::format("[prepare] {}: it was begun with other options: {}: give the same again, or "
                      "another --out, or remove it",
                      path_, differs));
    complete_ = before.at("complete");
    if (complete_) {
      fs::remove(note);
      point_.shards = before.at("shards");
      point_.counts = counts_of(before.at("totals"));
    } else if (!resumable_ || !fs::exists(note)) {
      begin();
    } else {
      const json reached = read_json(note);
      point_ = {reached.at("shards"), reached.at("source"), reached.at("row"),
                counts_of(reached.at("totals"))};
    }
  } catch (const json::exception&) {
    fail(
        fmt::format("[prepare] {}: the notes of the earlier run cannot be understood: remove the "
                    "folder to start anew",
                    path_));
  }
}

void PrepareFolder::remove_own(const std::string& prefix, const std::string& suffix) const {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(path_)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(prefix) && name.ends_with(suffix)) found.push_back(entry.path());
  }
  for (const fs::path& path : found) fs::remove(path);
}

// Anew: also where an earlier run has left shards that cannot be continued.
void PrepareFolder::begin() {
  point_ = {};
  remove_own("shard" + series_ + "-", kShardSuffix);
  write_json(file(kUnfinished, ".json"),
             {{"shards", 0}, {"source", 0}, {"row", 0}, {"totals", json_of({})}});
  json manifest = json::parse(plan_);
  manifest["complete"] = false;
  write_json(file("manifest", ".json"), manifest);
}

void PrepareFolder::write(ShardWriter& shard, PreparePoint reached) {
  shard.write(file("shard", fmt::format("-{:06}{}", point_.shards, kShardSuffix)));
  reached.shards = point_.shards + 1;
  point_ = reached;
  write_json(file(kUnfinished, ".json"), {{"shards", point_.shards},
                                          {"source", point_.source},
                                          {"row", point_.row},
                                          {"totals", json_of(point_.counts)}});
}

void PrepareFolder::finish(const PrepareCounts& counts) {
  json manifest = json::parse(plan_);
  manifest["complete"] = true;
  manifest["shards"] = point_.shards;
  manifest["totals"] = json_of(counts);
  write_json(file("manifest", ".json"), manifest);
  fs::remove(file(kUnfinished, ".json"));
  complete_ = true;
  point_.counts = counts;
}

void PrepareFolder::abandon() {
  fs::remove(file("manifest", ".json"));
  fs::remove(file(kUnfinished, ".json"));
  std::error_code ignored;
  fs::remove(path_, ignored);  // where it is empty
}

}  // namespace tinyllama
