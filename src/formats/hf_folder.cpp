// Reading and writing the folder.
#include "formats/hf_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/hf_config.h"
#include "formats/hf_tokenizer.h"
#include "formats/safetensors.h"
#include "formats/sentencepiece_model.h"
#include "formats/tensor_stream.h"
#include "formats/vocab_check.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxShards = 1000;
constexpr const char* kIndex = "model.safetensors.index.json";

bool exists(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

void add_tensors(const std::string& path, Checkpoint& into) {
  Safetensors file = open_safetensors(path);
  const std::string file_name = fs::path(path).filename().string();
  for (const auto& [name, entry] : file.entries) {
    const auto dtype = entry.float_type();
    if (entry.shape.empty() || entry.shape.size() > 2 || entry.elements() == 0) {
      into.notes.push_back(fmt::format("{} is ignored: not a matrix or vector", name));
      continue;
    }
    if (!dtype) {
      if (entry.dtype == "BOOL" || entry.dtype[0] == 'I' || entry.dtype[0] == 'U') {
        into.notes.push_back(fmt::format("{} is ignored: of type {}", name, entry.dtype));
        continue;
      }
      fail(fmt::format("[load] {}: want F32, F16 or BF16, got {} in {}", name, entry.dtype,
                       file_name));
    }
    NamedTensor tensor;
    tensor.name = name;
    tensor.view = TensorView(entry.data.data(), *dtype,
                             entry.shape.size() == 2 ? entry.shape[0] : 1, entry.shape.back());
    tensor.file = file_name;
    if (!into.tensors.emplace(name, tensor).second)
      fail(fmt::format("[load] {}: in {} and in {}", name, into.tensors[name].file, file_name));
  }
  into.files.push_back(std::move(file.file));
}

void add_shards(const std::string& folder, Checkpoint& into) {
  const std::string index_path = folder + "/" + kIndex;
  const auto index = parse_weight_index(read_text_file(index_path), index_path);
  std::set<std::string> shards;
  for (const auto& [tensor, file] : index) shards.insert(file);
  if (shards.size() > kMaxShards)
    fail(fmt::format("[load] {}: at most {} files, got {}", index_path, kMaxShards, shards.size()));
  for (const std::string& shard : shards) add_tensors(fmt::format("{}/{}", folder, shard), into);
}

void add_weights(const std::string& folder, const std::string& weights, Checkpoint& into) {
  if (!weights.empty()) return add_tensors(weights, into);
  if (exists(folder + "/model.safetensors"))
    return add_tensors(folder + "/model.safetensors", into);
  if (exists(folder + "/" + kIndex)) return add_shards(folder, into);
  for (const char* torch :
       {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"}) {
    if (exists(folder + "/" + torch))
      fail(
          fmt::format("[load] {}: {} is a Python pickle, which is not read: convert it to "
                      "model.safetensors (transformers: save_pretrained(..., "
                      "safe_serialization=True))",
                      folder, torch));
  }
  fail(fmt::format("[load] {}: want model.safetensors or {}", folder, kIndex));
}

// The turn ends that the model's and the generation's configuration list beyond the tokenizer's.
void add_turn_ends(Vocab& vocab, const std::vector<TokenId>& eos) {
  for (const TokenId id : eos) {
    if (id < 0 || id >= static_cast<TokenId>(vocab.pieces.size())) continue;
    if (vocab.eos == kNoToken) vocab.eos = id;
    if (id != vocab.eos &&
        std::find(vocab.extra_eos.begin(), vocab.extra_eos.end(), id) == vocab.extra_eos.end())
      vocab.extra_eos.push_back(id);
  }
}

std::string folder_name(const std::string& folder) {
  std::error_code code;
  const fs::path absolute = fs::weakly_canonical(folder, code);
  return code ? folder : absolute.filename().string();
}

}  // namespace

std::optional<Vocab> open_hf_vocab(const std::string& folder) {
  const std::string model = folder + "/tokenizer.model", json = folder + "/tokenizer.json";
  const std::string added = folder + "/added_tokens.json";
  const std::string config = folder + "/tokenizer_config.json";
  const std::string chat = folder + "/chat_template.jinja";
  Vocab vocab;
  const bool has_model = exists(model), has_json = exists(json);
  if (has_model) {
    const MappedFile file(model);
    vocab = parse_sentencepiece(file.bytes(), model);
  } else if (has_json) {
    vocab = parse_tokenizer_json(read_text_file(json), json);
  } else {
    return {};
  }
  if (has_model && has_json) apply_tokenizer_json_additions(vocab, read_text_file(json), json);
  if (exists(added)) apply_added_tokens(vocab, read_text_file(added), added);
  if (exists(config)) apply_tokenizer_config(vocab, read_text_file(config), config);
  if (exists(chat)) vocab.chat_template = read_text_file(chat, size_t{1} << 20);
  return vocab;
}

Checkpoint open_hf_folder(const std::string& folder, const std::string& weights) {
  const std::string config_path = folder + "/config.json";
  if (!exists(config_path)) fail(fmt::format("[load] {}: want config.json in the folder", folder));
  const HfConfig hf = parse_hf_config(read_text_file(config_path), config_path);
  Checkpoint result;
  result.path = folder;
  result.format = "Hugging Face folder";
  result.name = folder_name(folder);
  result.config = hf.config;
  result.vocab = open_hf_vocab(folder);
  if (result.vocab) {
    Vocab& vocab = *result.vocab;
    if (vocab.bos == kNoToken && hf.bos < static_cast<TokenId>(vocab.pieces.size()))
      vocab.bos = hf.bos;
    if (vocab.pad == kNoToken && hf.pad < static_cast<TokenId>(vocab.pieces.size()))
      vocab.pad = hf.pad;
    add_turn_ends(vocab, hf.eos);
  }
  const std::string generation = folder + "/generation_config.json";
  if (exists(generation)) {
    const GenerationConfig parsed = parse_generation_config(read_text_file(generation), generation);
    result.generation = parsed.defaults;
    if (result.vocab) add_turn_ends(*result.vocab, parsed.eos);
  }
  add_weights(folder, weights, result);
  check_checkpoint(result);
  return result;
}

// ---- writing ----

namespace {

void write_text(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

// Tensors in order, cut into shards as transformers does: a tensor that would overfill a shard
// starts the next one.
std::vector<std::vector<TensorSpec>> cut_shards(const Config& config, DType dtype,
                                                uint64_t max_shard) {
  std::vector<std::vector<TensorSpec>> shards(1);
  uint64_t size = 0;
  for (const TensorSpec& spec : tensor_specs(config)) {
    const uint64_t bytes = static_cast<uint64_t>(spec.rows) * row_bytes(dtype, spec.cols);
    if (!shards.back().empty() && size + bytes > max_shard) {
      shards.emplace_back();
      size = 0;
    }
    shards.back().push_back(spec);
    size += bytes;
  }
  return shards;
}

struct FolderWriter {
  const Config& config;
  const FillRows& fill;
  DType dtype;
  const Progress& progress;
  uint64_t max_shard;
  uint64_t total = 0, done = 0;

  SafetensorsItem item(const TensorSpec& spec) {
    std::vector<int64_t> shape = {spec.rows, spec.cols};
    if (spec.is_norm) shape = {spec.cols};
    return {spec.name, dtype, shape, [this, spec](AtomicFile& out) {
              stream_rows(
                  spec.rows, row_bytes(dtype, spec.cols),
                  [&](int64_t first, int64_t n, std::byte* to) { fill(spec, first, n, dtype, to); },
                  [&](std::span<const std::byte> bytes) {
                    out.write(bytes);
                    done += bytes.size();
                    if (progress) progress(spec.name, done, total);
                  });
            }};
  }

  void write_shard(const std::string& path, const std::vector<TensorSpec>& specs) {
    std::vector<SafetensorsItem> items;
    items.reserve(specs.size());
    for (const TensorSpec& spec : specs) items.push_back(item(spec));
    write_safetensors(path, items);
  }

  void write_weights(const std::string& folder) {
    const auto shards = cut_shards(config, dtype, max_shard);
    for (const auto& shard : shards) {
      for (const TensorSpec& spec : shard)
        total += static_cast<uint64_t>(spec.rows) * row_bytes(dtype, spec.cols);
    }
    if (shards.size() == 1) return write_shard(folder + "/model.safetensors", shards[0]);
    std::map<std::string, std::string> index;
    for (size_t i = 0; i < shards.size(); i++) {
      const std::string name =
          fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
      write_shard(fmt::format("{}/{}", folder, name), shards[i]);
      for (const TensorSpec& spec : shards[i]) index[spec.name] = name;
    }
    write_text(folder + "/" + kIndex, make_weight_index(index, total));
  }
};

}  // namespace

void write_hf_folder(const Checkpoint& from, const FillRows& fill, const std::string& path,
                     DType dtype, const Progress& progress, uint64_t max_shard) {
  validate(from.config, path);
  if (traits(dtype).safetensors_name.empty())
    fail(fmt::format(
        "[write] {}: a Hugging Face folder holds f32, f16 or bf16, not {}: write a .gguf "
        "file instead",
        path, traits(dtype).name));
  AtomicFolder folder(path);
  const Vocab* vocab = from.vocab ? &*from.vocab : nullptr;
  FolderWriter{from.config, fill, dtype, progress, max_shard}.write_weights(folder.path());
  write_text(folder.path() + "/config.json", make_hf_config(from.config, vocab, dtype));
  write_text(folder.path() + "/generation_config.json",
             make_generation_config(from.generation, vocab));
  if (vocab != nullptr) write_hf_vocab(*vocab, from.config.context, folder.path());
  folder.commit();
}

void write_hf_vocab(const Vocab& vocab, int64_t context, const std::string& folder) {
  write_text(folder + "/tokenizer.json", make_tokenizer_json(vocab));
  // A tokenizer.model has scores only; merges that scores cannot say are left to tokenizer.json.
  if (vocab.merges.empty()) write_text(folder + "/tokenizer.model", make_sentencepiece(vocab));
  write_text(folder + "/tokenizer_config.json", make_tokenizer_config(vocab, context));
  write_text(folder + "/special_tokens_map.json", make_special_tokens_map(vocab));
}

void write_hf_folder(const Checkpoint& from, const FillRows& fill, const std::string& path,
                     DType dtype, const Progress& progress) {
  write_hf_folder(from, fill, path, dtype, progress, kMaxShard);
}

void write_hf_folder(const Checkpoint& from, const std::string& path, DType dtype, ThreadPool& pool,
                     const Progress& progress) {
  const FillRows fill = [&](const TensorSpec& spec, int64_t first, int64_t n, DType to_type,
                            std::byte* to) {
    TL_CHECK(from.find(spec.name) != nullptr);
    const NamedTensor& tensor = *from.find(spec.name);
    convert_rows(tensor, spec, to_type, RowOrder::hugging_face, pool, first, n, to);
    if (first + n == spec.rows) drop_pages(from, tensor.view);
  };
  write_hf_folder(from, fill, path, dtype, progress);
}

}  // namespace tinyllama
