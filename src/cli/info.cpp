// `tinyllama info`: what a model is, what is in its files, and the memory that running it takes.
#include <nlohmann/json.hpp>

#include <map>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "formats/checkpoint.h"
#include "model/kv_cache.h"
#include "text/chat_template.h"

namespace tinyllama::cli {
namespace {

using nlohmann::json;

struct InfoOptions {
  std::string model;
  int64_t context = 0;
  std::string kv_type;
  bool tensors = false, json = false;
};

struct TypeTotal {
  int64_t tensors = 0, elements = 0;
  uint64_t bytes = 0;
};

// By data type, in the order of DType.
std::map<DType, TypeTotal> totals(const Checkpoint& checkpoint) {
  std::map<DType, TypeTotal> by_type;
  for (const auto& [name, tensor] : checkpoint.tensors) {
    TypeTotal& total = by_type[tensor.view.dtype];
    total.tensors++;
    total.elements += tensor.view.elements();
    total.bytes += tensor.view.bytes();
  }
  return by_type;
}

// What running one sequence of `context` positions takes, in bytes.
struct MemoryPlan {
  int64_t context = 0;
  DType kv_type = DType::f16;
  uint64_t weights = 0, kv_per_token = 0, kv = 0;
  uint64_t total() const { return weights + kv; }
};

MemoryPlan memory_plan(const InfoOptions& o, const Checkpoint& checkpoint) {
  const Config& config = checkpoint.config;
  MemoryPlan plan;
  plan.context = o.context > 0 ? o.context : config.context;
  if (!o.kv_type.empty()) {
    plan.kv_type = dtype_from_name(o.kv_type);
  } else {
    const NamedTensor* q = checkpoint.find("model.layers.0.self_attn.q_proj.weight");
    if (q != nullptr && !traits(q->view.dtype).quantized) plan.kv_type = q->view.dtype;
  }
  plan.weights = checkpoint.tensor_bytes();
  plan.kv_per_token = kv_bytes_per_token(config, plan.kv_type);
  plan.kv = plan.kv_per_token * static_cast<uint64_t>(plan.context);
  return plan;
}

const char* scaling_name(RopeScaling::Kind kind) {
  switch (kind) {
    case RopeScaling::Kind::linear:
      return "linear";
    case RopeScaling::Kind::dynamic:
      return "dynamic NTK";
    case RopeScaling::Kind::yarn:
      return "YaRN";
    case RopeScaling::Kind::llama3:
      return "Llama 3";
    case RopeScaling::Kind::none:
      break;
  }
  return "none";
}

json config_json(const Config& c) {
  return {{"vocab_size", c.vocab_size},
          {"hidden", c.hidden},
          {"intermediate", c.intermediate},
          {"n_layers", c.n_layers},
          {"n_heads", c.n_heads},
          {"n_kv_heads", c.n_kv_heads},
          {"head_dim", c.head_dim},
          {"context", c.context},
          {"norm_eps", c.norm_eps},
          {"rope_theta", c.rope_theta},
          {"rope_scaling", scaling_name(c.rope_scaling.kind)},
          {"tied_embeddings", c.tied_embeddings}};
}

void print_json(const InfoOptions& o, const Checkpoint& checkpoint, const MemoryPlan& plan,
                Output& out) {
  json object = {{"path", checkpoint.path},
                 {"format", checkpoint.format},
                 {"name", checkpoint.name},
                 {"parameters", checkpoint.config.parameters()},
                 {"config", config_json(checkpoint.config)},
                 {"notes", checkpoint.notes},
                 {"memory",
                  {{"context", plan.context},
                   {"kv_type", traits(plan.kv_type).name},
                   {"weights", plan.weights},
                   {"kv_per_token", plan.kv_per_token},
                   {"kv", plan.kv},
                   {"total", plan.total()}}}};
  for (const auto& [dtype, total] : totals(checkpoint))
    object["types"][std::string(traits(dtype).name)] = {
        {"tensors", total.tensors}, {"elements", total.elements}, {"bytes", total.bytes}};
  if (checkpoint.vocab) {
    const Vocab& vocab = *checkpoint.vocab;
    object["tokenizer"] = {{"pieces", vocab.pieces.size()},
                           {"bos", vocab.bos},
                           {"eos", vocab.eos},
                           {"add_bos", vocab.add_bos}};
    object["chat_template"] = ChatTemplate(detect_chat_format(vocab, checkpoint.name)).name();
  }
  if (o.tensors)
    for (const auto& [name, tensor] : checkpoint.tensors)
      object["tensors"][name] = {{"rows", tensor.view.rows},
                                 {"cols", tensor.view.cols},
                                 {"dtype", traits(tensor.view.dtype).name}};
  out.print("{}\n", object.dump(2, ' ', false, json::error_handler_t::replace));
}

void print_config(const Checkpoint& checkpoint, Output& out) {
  const Config& c = checkpoint.config;
  out.print("{}: {}\n", checkpoint.name, checkpoint.format);
  out.print("  parameters    {} ({:.1f} M)\n", c.parameters(),
            static_cast<double>(c.parameters()) / 1e6);
  out.print("  shape         {} layers, hidden {}, intermediate {}\n", c.n_layers, c.hidden,
            c.intermediate);
  out.print("  attention     {} heads of {}, {} for keys and values\n", c.n_heads, c.head_dim,
            c.n_kv_heads);
  out.print("  vocabulary    {}{}\n", c.vocab_size,
            c.tied_embeddings ? ", embeddings tied to the head" : "");
  out.print("  context       {}, RoPE base {:g}", c.context, c.rope_theta);
  if (c.rope_scaling.kind != RopeScaling::Kind::none)
    out.print(", {} scaling by {:g}", scaling_name(c.rope_scaling.kind), c.rope_scaling.factor);
  out.write("\n");
}

void print_tokenizer(const Checkpoint& checkpoint, Output& out) {
  if (!checkpoint.vocab) return out.write("  tokenizer     none\n");
  const Vocab& vocab = *checkpoint.vocab;
  out.print("  tokenizer     {} pieces, bos {}, eos {}\n", vocab.pieces.size(), vocab.bos,
            vocab.eos);
  out.print("  chat format   {}\n",
            ChatTemplate(detect_chat_format(vocab, checkpoint.name)).name());
}

void print_text(const InfoOptions& o, const Checkpoint& checkpoint, const MemoryPlan& plan,
                Output& out) {
  print_config(checkpoint, out);
  print_tokenizer(checkpoint, out);
  for (const auto& [dtype, total] : totals(checkpoint))
    out.print("  {:<13} {} tensors, {}\n", traits(dtype).name, total.tensors,
              human_bytes(total.bytes));
  out.print("  memory        weights {} + cache {} ({} positions of {} bytes in {}) = {}\n",
            human_bytes(plan.weights), human_bytes(plan.kv), plan.context, plan.kv_per_token,
            traits(plan.kv_type).name, human_bytes(plan.total()));
  for (const std::string& text : checkpoint.notes) out.print("  note          {}\n", text);
  if (!o.tensors) return;
  for (const auto& [name, tensor] : checkpoint.tensors)
    out.print("  {:<50} {:>6} x {:<6} {}\n", name, tensor.view.rows, tensor.view.cols,
              traits(tensor.view.dtype).name);
}

void run(const InfoOptions& o, Output& out) {
  const Checkpoint checkpoint = open_checkpoint(resolve_model(o.model));
  const MemoryPlan plan = memory_plan(o, checkpoint);
  if (o.json) return print_json(o, checkpoint, plan, out);
  print_text(o, checkpoint, plan, out);
}

}  // namespace

Action info(Options& options) {
  auto o = std::make_shared<InfoOptions>();
  options.add(
      o->model,
      {.flags = "MODEL,-m,--model",
       .help = "A Hugging Face folder, a .gguf or a llama2.c .bin; unset: the model that chat "
               "would use",
       .placeholder = "PATH"});
  options.add(o->context, {.flags = "--context",
                           .help = "Plan memory for so many positions; 0: the model's",
                           .min = 0});
  options.add(o->kv_type, {.flags = "--kv-type",
                           .help = "Plan for this type of cached keys and values",
                           .choices = {"f32", "f16", "bf16", "q8_0"}});
  options.add(o->tensors, {.flags = "--tensors", .help = "List every tensor"});
  options.add(o->json, {.flags = "--json", .help = "Print one JSON object"});
  options.example("tinyllama info model.gguf", "a summary");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
