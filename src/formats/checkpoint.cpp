// Detecting what a path is, dispatching to its reader, and the checks that every model passes.
#include "formats/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "formats/hf_folder.h"
#include "formats/hf_tokenizer.h"
#include "formats/llama2c.h"
#include "formats/sentencepiece_model.h"
#include "formats/vocab_check.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHead = "lm_head.weight";

bool is_folder(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

std::string file_name(const std::string& path) {
  return fs::path(path).filename().string();
}

bool starts_with(const MappedFile& file, std::string_view magic) {
  return as_text(file.bytes()).starts_with(magic);
}

// Where a shape check failed, and what the shapes are.
[[noreturn]] void wrong_shape(const TensorSpec& spec, const NamedTensor& tensor) {
  const auto shape = [&](int64_t rows, int64_t cols) {
    return spec.is_norm && rows == 1 ? fmt::format("({})", cols)
                                     : fmt::format("({}, {})", rows, cols);
  };
  fail(fmt::format("[load] {}: want {}, got {} in {}", spec.name, shape(spec.rows, spec.cols),
                   shape(tensor.view.rows, tensor.view.cols), tensor.file));
}

void check_tensor(const TensorSpec& spec, const Checkpoint& checkpoint) {
  const NamedTensor* tensor = checkpoint.find(spec.name);
  if (tensor == nullptr)
    fail(fmt::format("[load] {}: want ({}, {}), but there is no such tensor in {}", spec.name,
                     spec.rows, spec.cols, checkpoint.path));
  if (tensor->view.rows != spec.rows || tensor->view.cols != spec.cols) wrong_shape(spec, *tensor);
  if (spec.is_norm && traits(tensor->view.dtype).quantized)
    fail(fmt::format("[load] {}: want f32, f16 or bf16, got {} in {}", spec.name,
                     traits(tensor->view.dtype).name, tensor->file));
  if (tensor->interleaved_dim != 0 && tensor->interleaved_dim != spec.rotary_dim)
    fail(fmt::format("[load] {}: rows are interleaved by {}, want {}", spec.name,
                     tensor->interleaved_dim, spec.rotary_dim));
}

// Removes what is not in `wanted`. Rotation tables and the like are harmless; a bias is not.
void remove_extra(Checkpoint& checkpoint, const std::set<std::string>& wanted) {
  std::vector<std::string> extra;
  for (const auto& [name, tensor] : checkpoint.tensors) {
    if (wanted.contains(name)) continue;
    if (name.ends_with(".bias") && !name.ends_with("rotary_emb.bias"))
      fail(fmt::format("[load] {} in {}: models with biases are not supported", name, tensor.file));
    extra.push_back(name);
  }
  if (extra.empty()) return;
  for (const std::string& name : extra) checkpoint.tensors.erase(name);
  checkpoint.notes.push_back(fmt::format("{} tensor{} that a Llama does not use: {}{}",
                                         extra.size(), extra.size() == 1 ? "" : "s", extra.front(),
                                         extra.size() == 1 ? "" : ", ..."));
}

// A file may place tensors at odd addresses; such a one is copied, once.
void align(Checkpoint& checkpoint) {
  for (auto& [name, tensor] : checkpoint.tensors) {
    const uintptr_t alignment = tensor.view.dtype == DType::f32 ? 4 : 2;
    if (reinterpret_cast<uintptr_t>(tensor.view.data) % alignment == 0) continue;
    auto copy = std::make_shared<Buffer>(alloc_host(tensor.view.bytes()));
    std::memcpy(copy->data(), tensor.view.data, tensor.view.bytes());
    tensor.view.data = copy->data();
    checkpoint.copies.push_back(std::move(copy));
  }
}

// ---- llama2.c ----

// The vocabulary of a .bin lies beside it: tokenizer.model, tok<vocab_size>*.model, then the same
// as .bin; the first that has the right number of pieces.
std::optional<Vocab> vocab_beside(const std::string& path, int64_t vocab_size,
                                  std::vector<std::string>& notes) {
  const std::string folder = parent_of(path), prefix = fmt::format("tok{}", vocab_size);
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    const bool digits =
        name.size() > prefix.size() && name[prefix.size()] >= '0' && name[prefix.size()] <= '9';
    const std::string extension = entry.path().extension().string();
    if (((name.starts_with(prefix) && !digits) || name.starts_with("tokenizer.")) &&
        (extension == ".model" || extension == ".bin"))
      names.push_back(name);
  }
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    const bool model_a = a.ends_with(".model"), model_b = b.ends_with(".model");
    return model_a != model_b ? model_a : a > b;  // "tokenizer" before "tok512"
  });
  for (const std::string& name : names) {
    const MappedFile file(fmt::format("{}/{}", folder, name));
    try {
      Vocab vocab = name.ends_with(".model") ? parse_sentencepiece(file.bytes(), file.path())
                                             : parse_llama2c_vocab(file.bytes(), file.path());
      if (static_cast<int64_t>(vocab.pieces.size()) == vocab_size) return vocab;
    } catch (const Error& error) {
      notes.push_back(fmt::format("passed over: {}", error.what()));
    }
  }
  return {};
}

Checkpoint open_llama2c(const std::shared_ptr<const MappedFile>& file, const std::string& path) {
  Checkpoint result = parse_llama2c(file->bytes(), path);
  for (auto& [name, tensor] : result.tensors) tensor.file = file_name(path);
  result.path = path;
  result.name = fs::path(path).stem().string();
  result.files.push_back(file);
  result.vocab = vocab_beside(path, result.config.vocab_size, result.notes);
  if (!result.vocab)
    result.notes.push_back(
        fmt::format("no tokenizer of {} pieces beside it (tokenizer.model, "
                    "tokenizer.bin, tok{}.model or tok{}.bin)",
                    result.config.vocab_size, result.config.vocab_size, result.config.vocab_size));
  check_checkpoint(result);
  return result;
}

Checkpoint open_gguf(const std::shared_ptr<const MappedFile>& file, const std::string& path) {
  Checkpoint result = checkpoint_of_gguf(parse_gguf(file->bytes(), path));
  if (result.name.empty()) result.name = fs::path(path).stem().string();
  result.files.push_back(file);
  return result;
}

// Whether the bytes look like a safetensors file: a plausible header length, then a JSON object.
bool looks_like_safetensors(const MappedFile& file) {
  uint64_t length = 0;
  if (file.size() < 9) return false;
  std::memcpy(&length, file.bytes().data(), sizeof length);
  return length < file.size() && file.bytes()[8] == std::byte{'{'};
}

bool is_llama2c_model(const MappedFile& file) {
  try {
    parse_llama2c(file.bytes(), file.path());
    return true;
  } catch (const Error&) {
    return false;
  }
}

Vocab need_vocab(std::optional<Vocab> vocab, const std::string& where) {
  if (!vocab)
    fail(
        fmt::format("[load] {}: no tokenizer there: want tokenizer.model, tokenizer.json or "
                    "tok*.bin beside the model",
                    where));
  return std::move(*vocab);
}

Vocab open_json_vocab(const std::string& path) {
  Vocab vocab = parse_tokenizer_json(read_text_file(path), path);
  const std::string config = parent_of(path) + "/tokenizer_config.json";
  if (fs::exists(config)) apply_tokenizer_config(vocab, read_text_file(config), config);
  return vocab;
}

}  // namespace

const NamedTensor* Checkpoint::find(const std::string& tensor_name) const {
  const auto at = tensors.find(tensor_name);
  return at == tensors.end() ? nullptr : &at->second;
}

uint64_t Checkpoint::tensor_bytes() const {
  uint64_t sum = 0;
  for (const auto& [key, tensor] : tensors) sum += tensor.view.bytes();
  return sum;
}

std::vector<TensorSpec> tensor_specs(const Config& c) {
  std::vector<TensorSpec> specs;
  specs.reserve(static_cast<size_t>(9 * c.n_layers + 3));
  const auto matrix = [&](std::string name, int64_t rows, int64_t cols, int64_t rotary_dim = 0) {
    specs.push_back({std::move(name) + ".weight", rows, cols, false, rotary_dim});
  };
  const auto norm = [&](std::string name) {
    specs.push_back({std::move(name) + ".weight", 1, c.hidden, true, 0});
  };
  matrix("model.embed_tokens", c.vocab_size, c.hidden);
  for (int64_t i = 0; i < c.n_layers; i++) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    norm(layer + "input_layernorm");
    matrix(layer + "self_attn.q_proj", c.q_dim(), c.hidden, c.head_dim);
    matrix(layer + "self_attn.k_proj", c.kv_dim(), c.hidden, c.head_dim);
    matrix(layer + "self_attn.v_proj", c.kv_dim(), c.hidden);
    matrix(layer + "self_attn.o_proj", c.hidden, c.q_dim());
    norm(layer + "post_attention_layernorm");
    matrix(layer + "mlp.gate_proj", c.intermediate, c.hidden);
    matrix(layer + "mlp.up_proj", c.intermediate, c.hidden);
    matrix(layer + "mlp.down_proj", c.hidden, c.intermediate);
  }
  norm("model.norm");
  if (!c.tied_embeddings) matrix("lm_head", c.vocab_size, c.hidden);
  return specs;
}

void check_checkpoint(Checkpoint& checkpoint) {
  validate(checkpoint.config, checkpoint.path);
  if (!checkpoint.config.tied_embeddings && checkpoint.find(kHead) == nullptr) {
    checkpoint.config.tied_embeddings = true;
    checkpoint.notes.emplace_back("no lm_head.weight: the head is taken as tied to the embeddings");
  }
  if (checkpoint.config.tied_embeddings) checkpoint.tensors.erase(kHead);
  std::set<std::string> wanted;
  for (const TensorSpec& spec : tensor_specs(checkpoint.config)) {
    check_tensor(spec, checkpoint);
    wanted.insert(spec.name);
  }
  remove_extra(checkpoint, wanted);
  align(checkpoint);
  if (checkpoint.vocab)
    fit_vocab(*checkpoint.vocab, checkpoint.config.vocab_size, checkpoint.notes);
}

Checkpoint open_checkpoint(const std::string& path) {
  if (is_folder(path)) return open_hf_folder(path, "");
  const auto file = std::make_shared<const MappedFile>(path);
  if (starts_with(*file, "GGUF")) return open_gguf(file, path);
  if (starts_with(*file, "PK\x03\x04") || starts_with(*file, "\x80\x02"))
    fail(fmt::format(
        "[load] {}: a Python pickle, which is not read: convert it to model.safetensors "
        "(transformers: save_pretrained(..., safe_serialization=True))",
        path));
  if (path.ends_with(".safetensors") || looks_like_safetensors(*file))
    return open_hf_folder(parent_of(path), path);
  if (path.ends_with(".json") || path.ends_with(".model"))
    fail(fmt::format("[load] {}: not a model: give its folder, a .gguf or a .bin file", path));
  return open_llama2c(file, path);
}

Vocab open_vocab(const std::string& path) {
  if (is_folder(path)) return need_vocab(open_hf_vocab(path), path);
  const MappedFile file(path);
  if (starts_with(file, "GGUF")) return vocab_of_gguf(parse_gguf(file.bytes(), path));
  if (path.ends_with(".json")) return open_json_vocab(path);
  if (path.ends_with(".safetensors")) return need_vocab(open_hf_vocab(parent_of(path)), path);
  // A tokenizer.model starts with its first piece: field 1, then a length that is not zero.
  const bool message =
      file.size() > 2 && file.bytes()[0] == std::byte{0x0a} && file.bytes()[1] != std::byte{0};
  if (path.ends_with(".model") || message) return parse_sentencepiece(file.bytes(), path);
  if (is_llama2c_model(file)) {
    Checkpoint model = parse_llama2c(file.bytes(), path);
    return need_vocab(vocab_beside(path, model.config.vocab_size, model.notes), path);
  }
  return parse_llama2c_vocab(file.bytes(), path);
}

}  // namespace tinyllama
