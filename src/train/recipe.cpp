#include "train/recipe.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <sstream>
#include <string_view>

#include "base/error.h"
#include "base/file.h"
#include "base/nearest.h"
#include "formats/config.h"

namespace tinyllama {
namespace {

constexpr int64_t kMaxSteps = int64_t{1} << 40, kMaxContext = 1 << 20,
                  kMaxTokens = int64_t{1} << 40;
constexpr size_t kMaxRecipeBytes = size_t{1} << 20;

// "recipe.toml:7", or the --set that a value came from (its source is named as it was given).
std::string where(const toml::source_region& source) {
  std::string path = source.path ? *source.path : "recipe";
  if (path.starts_with("--set ") || source.begin.line == 0) return path;
  return fmt::format("{}:{}", path, source.begin.line);
}

[[noreturn]] void fail_at(const toml::source_region& source, const std::string& message) {
  fail(fmt::format("[recipe] {}: {}", where(source), message));
}

// A value as the message shows it.
std::string shown(const toml::node& node) {
  if (const auto* text = node.as_string()) return fmt::format("the text '{}'", text->get());
  if (node.is_table()) return "a table";
  if (node.is_array()) return "a list";
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  std::ostringstream out;
  node.visit([&](const auto& value) {
    if constexpr (toml::is_value<decltype(value)>) out << value.get();
  });
  return out.str();
}

std::string did_you_mean(const std::string& name, const std::vector<std::string>& known) {
  const std::string near = nearest(name, known);
  return near.empty() ? fmt::format(" (known: {})", fmt::join(known, ", "))
                      : fmt::format(", did you mean {}?", near);
}

// One table of the recipe: reads its keys, then finish() refuses those that nobody asked for.
class Section {
 public:
  Section(std::string name, const toml::table* table) : name_(std::move(name)), table_(table) {}

  const toml::node* find(const char* key) {
    known_.emplace_back(key);
    return table_ == nullptr ? nullptr : table_->get(key);
  }

  // Each gives back whether the key is there.
  bool read(const char* key, int64_t& value, int64_t least, int64_t most) {
    const toml::node* node = find(key);
    if (node == nullptr) return false;
    const auto* number = node->as_integer();
    if (number == nullptr || number->get() < least || number->get() > most)
      fail_at(node->source(), fmt::format("{}: want a whole number in [{}, {}], got {}", full(key),
                                          least, most, shown(*node)));
    value = number->get();
    return true;
  }

  bool read(const char* key, double& value, double least, double most) {
    const toml::node* node = find(key);
    if (node == nullptr) return false;
    value = number_in(*node, full(key), least, most);
    return true;
  }

  bool read(const char* key, bool& value) {
    const toml::node* node = find(key);
    if (node == nullptr) return false;
    if (!node->is_boolean())
      fail_at(node->source(),
              fmt::format("{}: want true or false, got {}", full(key), shown(*node)));
    value = node->as_boolean()->get();
    return true;
  }

  bool read(const char* key, std::string& value, const std::vector<std::string>& choices = {}) {
    const toml::node* node = find(key);
    if (node == nullptr) return false;
    const auto* text = node->as_string();
    if (text == nullptr || text->get().empty())
      fail_at(node->source(), fmt::format("{}: want a text, got {}", full(key), shown(*node)));
    value = text->get();
    if (!choices.empty() && std::find(choices.begin(), choices.end(), value) == choices.end())
      fail_at(
          node->source(),
          fmt::format("{}: want one of {}, got '{}'{}", full(key), fmt::join(choices, ", "), value,
                      nearest(value, choices).empty() ? "" : did_you_mean(value, choices)));
    return true;
  }

  void finish() const {
    if (table_ == nullptr) return;
    for (const auto& [key, node] : *table_) {
      const std::string name(key.str());
      if (std::find(known_.begin(), known_.end(), name) == known_.end())
        fail_at(key.source(),
                fmt::format("unknown key {}{}", full(name), did_you_mean(name, known_)));
    }
  }

  static double number_in(const toml::node& node, const std::string& name, double least,
                          double most) {
    const double value = node.is_number() ? node.value_or(0.0) : std::nan("");
    if (!(value >= least && value <= most))
      fail_at(node.source(), most == std::numeric_limits<double>::max()
                                 ? fmt::format("{}: want a number of at least {}, got {}", name,
                                               least, shown(node))
                                 : fmt::format("{}: want a number in [{}, {}], got {}", name, least,
                                               most, shown(node)));
    return value;
  }

 private:
  std::string full(std::string_view key) const { return fmt::format("{}.{}", name_, key); }

  std::string name_;
  const toml::table* table_;
  std::vector<std::string> known_;
};

constexpr double kAny = std::numeric_limits<double>::max(), kTiny = 1e-30;

Recipe::Model read_model(Section section) {
  Recipe::Model model;
  const int given = static_cast<int>(section.read("preset", model.preset, preset_names())) +
                    static_cast<int>(section.read("config", model.config)) +
                    static_cast<int>(section.read("init", model.init));
  section.finish();
  if (given != 1)
    fail(fmt::format("[recipe] model: want one of preset, config and init, got {}",
                     given == 0 ? "none" : "more than one"));
  return model;
}

Recipe::Data read_data(Section section) {
  Recipe::Data data;
  const toml::node* train = section.find("train");
  if (train == nullptr)
    fail("[recipe] data.train is missing: want a list such as [{path = \"tokens\", weight = 1}]");
  const toml::array* list = train->as_array();
  if (list == nullptr || list->empty())
    fail_at(train->source(),
            fmt::format("data.train: want a list such as [{{path = \"tokens\", weight = 1}}], got "
                        "{}",
                        list == nullptr ? shown(*train) : "an empty one"));
  for (const toml::node& entry : *list) {
    if (!entry.is_table())
      fail_at(
          entry.source(),
          fmt::format("data.train: want {{path = \"...\", weight = ...}}, got {}", shown(entry)));
    Section source_section("data.train", entry.as_table());
    MixtureSource source;
    if (!source_section.read("path", source.path))
      fail_at(entry.source(), "data.train: an entry has no path");
    source_section.read("weight", source.weight, 1e-6, 1e6);
    source_section.finish();
    data.train.push_back(std::move(source));
  }
  section.read("validation", data.validation);
  std::string order = "shuffled";
  section.read("order", order, {"shuffled", "sequential"});
  data.order = order == "shuffled" ? Order::shuffled : Order::sequential;
  section.read("mask_documents", data.mask_documents);
  section.finish();
  return data;
}

Recipe::Train read_train(Section section) {
  Recipe::Train train;
  if (!section.read("steps", train.steps, 1, kMaxSteps))
    fail("[recipe] train.steps is missing: want the number of optimizer steps");
  section.read("context", train.context, 1, kMaxContext);
  section.read("micro_batch", train.micro_batch, 1, 1 << 16);
  train.tokens_per_step = train.micro_batch * train.context;
  section.read("tokens_per_step", train.tokens_per_step, 1, kMaxTokens);
  int64_t seed = static_cast<int64_t>(train.seed), threads = train.threads;
  section.read("seed", seed, 0, std::numeric_limits<int64_t>::max());
  section.read("threads", threads, 0, 1024);
  train.seed = static_cast<uint64_t>(seed);
  train.threads = static_cast<int>(threads);
  section.read("precision", train.precision, {"bf16", "fp32"});
  section.finish();
  return train;
}

void read_betas(Section& section, Recipe::Optimizer& optimizer) {
  const toml::node* node = section.find("betas");
  if (node == nullptr) return;
  const toml::array* list = node->as_array();
  if (list == nullptr || list->size() != 2)
    fail_at(
        node->source(),
        fmt::format("optimizer.betas: want two numbers such as [0.9, 0.95], got "
                    "{}",
                    list == nullptr ? shown(*node) : fmt::format("a list of {}", list->size())));
  constexpr double kBelowOne = 1 - 0x1.0p-53;
  optimizer.beta1 = Section::number_in(*list->get(0), "optimizer.betas", 0, kBelowOne);
  optimizer.beta2 = Section::number_in(*list->get(1), "optimizer.betas", 0, kBelowOne);
}

Recipe::Optimizer read_optimizer(Section section, int64_t steps) {
  Recipe::Optimizer o;
  section.read("name", o.name, {"adamw"});
  section.read("lr", o.lr, kTiny, 1e3);
  o.min_lr = o.lr / 10;
  section.read("min_lr", o.min_lr, 0, 1e3);
  o.warmup_steps = std::min<int64_t>(2000, steps / 10);
  section.read("warmup_steps", o.warmup_steps, 0, kMaxSteps);
  std::string schedule = schedule_names().front();
  section.read("schedule", schedule, schedule_names());
  const auto& names = schedule_names();
  o.schedule =
      static_cast<ScheduleKind>(std::find(names.begin(), names.end(), schedule) - names.begin());
  o.decay_steps =
      std::min(std::max<int64_t>(1, steps / 10), std::max<int64_t>(0, steps - o.warmup_steps));
  const bool decay_given = section.read("decay_steps", o.decay_steps, 0, kMaxSteps);
  read_betas(section, o);
  section.read("weight_decay", o.weight_decay, 0, 1e3);
  section.read("decay_norms", o.decay_norms);
  section.read("clip", o.clip, 0, kAny);
  section.finish();

  if (o.min_lr > o.lr)
    fail(fmt::format("[recipe] optimizer.min_lr = {} is above optimizer.lr = {}", o.min_lr, o.lr));
  if (o.warmup_steps > steps)
    fail(fmt::format("[recipe] optimizer.warmup_steps = {} is more than train.steps = {}",
                     o.warmup_steps, steps));
  if (decay_given && o.schedule != ScheduleKind::wsd)
    fail(fmt::format("[recipe] optimizer.decay_steps belongs to schedule = \"wsd\", got \"{}\"",
                     schedule));
  if (o.schedule == ScheduleKind::wsd && o.decay_steps > steps - o.warmup_steps)
    fail(
        fmt::format("[recipe] optimizer.decay_steps = {} and warmup_steps = {} are more than "
                    "train.steps = {}",
                    o.decay_steps, o.warmup_steps, steps));
  return o;
}

Recipe::Out read_output(Section section, const std::string& path) {
  Recipe::Out output;
  output.dir = "runs/" + std::filesystem::path(path).stem().string();
  section.read("dir", output.dir);
  section.read("checkpoint_every", output.checkpoint_every, 0, kMaxSteps);
  section.read("keep", output.keep, 1, 1'000'000);
  section.finish();
  return output;
}

toml::table parse(const std::string& text, const std::string& name) {
  try {
    return toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    fail_at(error.source(), std::string(error.description()));
  }
}

// Tables are merged, anything else of `from` replaces what was there. Nodes are moved, since only
// so they remember where they stood.
void merge(toml::table& to, toml::table&& from) {
  for (auto&& [key, node] : from) {
    toml::node* old = to.get(key.str());
    if (node.is_table() && old != nullptr && old->is_table()) {
      merge(*old->as_table(), std::move(*node.as_table()));
    } else {
      if (old != nullptr) to.erase(key.str());
      std::move(node).visit([&, &name = key](auto&& value) {
        to.insert_or_assign(name, std::forward<decltype(value)>(value));
      });
    }
  }
}

// A value without quotes that is no TOML counts as text: a path, a name.
bool is_bare(std::string_view value) {
  return !value.empty() && value.find_first_of("\"'[]{}#=,\n\r") == std::string_view::npos;
}

void apply(toml::table& recipe, const std::string& setting) {
  const size_t equals = setting.find('=');
  const std::string name = "--set " + setting;
  if (equals == std::string::npos || equals == 0)
    fail(fmt::format("[recipe] {}: want key=value, such as --set train.steps=100", name));
  const std::string key = setting.substr(0, equals), value = setting.substr(equals + 1);
  if (setting.find_first_of("\n\r") != std::string::npos ||
      key.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-0123456789") !=
          std::string::npos)
    fail(fmt::format("[recipe] {}: want a key such as train.steps", name));
  toml::table parsed;
  try {
    parsed = toml::parse(key + " = " + value, name);
  } catch (const toml::parse_error& error) {
    if (!is_bare(value))
      fail(fmt::format("[recipe] {}: want a TOML value: {}", name, error.description()));
    parsed = parse(fmt::format("{} = '{}'", key, value), name);
  }
  merge(recipe, std::move(parsed));
}

}  // namespace

Recipe read_recipe(const std::string& path, const std::vector<std::string>& overrides) {
  toml::table root = parse(read_text_file(path, kMaxRecipeBytes), path);
  for (const std::string& setting : overrides) apply(root, setting);

  const std::vector<std::string> tables = {"model", "data", "train", "optimizer", "output"};
  for (const auto& [key, node] : root) {
    const std::string name(key.str());
    if (std::find(tables.begin(), tables.end(), name) == tables.end())
      fail_at(key.source(), fmt::format("unknown {} {}{}", node.is_table() ? "table" : "key", name,
                                        did_you_mean(name, tables)));
    if (!node.is_table())
      fail_at(key.source(), fmt::format("{}: want a table, got {}", name, shown(node)));
  }
  const auto section = [&](const char* name) { return Section(name, root[name].as_table()); };
  Recipe recipe;
  recipe.model = read_model(section("model"));
  recipe.data = read_data(section("data"));
  recipe.train = read_train(section("train"));
  recipe.optimizer = read_optimizer(section("optimizer"), recipe.train.steps);
  recipe.output = read_output(section("output"), path);
  (void)recipe.loader();  // refuses what cannot be divided
  return recipe;
}

Schedule Recipe::schedule() const {
  return {optimizer.schedule,     optimizer.lr, optimizer.min_lr,
          optimizer.warmup_steps, train.steps,  optimizer.decay_steps};
}

LoaderOptions Recipe::loader(int rank, int ranks) const {
  TL_CHECK(rank >= 0 && rank < ranks);
  const int64_t unit = train.micro_batch * train.context * ranks;
  if (train.tokens_per_step % unit != 0) {
    const int64_t below = train.tokens_per_step / unit * unit;
    fail(
        fmt::format("[recipe] train.tokens_per_step = {} is no multiple of micro_batch * context * "
                    "ranks = {} * "
                    "{} * {} = {}: {}{} would do",
                    train.tokens_per_step, train.micro_batch, train.context, ranks, unit,
                    below == 0 ? "" : fmt::format("{} or ", below), below + unit));
  }
  return {.blocks_per_step = train.tokens_per_step / train.context,
          .micro_batch = train.micro_batch,
          .rank = rank,
          .ranks = ranks,
          .mask_documents = data.mask_documents};
}

}  // namespace tinyllama
