// Writing a Llama as GGUF version 3, with the keys and names that llama.cpp's loader wants.
#include <fmt/format.h>

#include <map>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "formats/hf_config.h"
#include "formats/tensor_stream.h"
#include "formats/vocab_check.h"

namespace tinyllama {
namespace {

using Kind = RopeScaling::Kind;

// general.file_type (llama.cpp's llama_ftype) of a file whose matrices are mostly of this type.
uint32_t file_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 0;
    case DType::f16:
      return 1;
    case DType::q4_0:
      return 2;
    case DType::q8_0:
      return 7;
    case DType::q4_k:
      return 15;
    case DType::q6_k:
      return 18;
    case DType::bf16:
      return 32;
  }
  return 0;
}

struct Stored {
  TensorSpec spec;
  DType dtype;
  uint64_t bytes;
};

std::vector<Stored> plan(const Config& config, const DTypeChoice& dtype_of) {
  std::vector<Stored> tensors;
  for (const TensorSpec& spec : tensor_specs(config)) {
    const DType dtype = spec.is_norm ? DType::f32 : dtype_of(spec);
    check_block(spec, dtype);
    tensors.push_back(
        {spec, dtype, static_cast<uint64_t>(spec.rows) * row_bytes(dtype, spec.cols)});
  }
  return tensors;
}

void add_general(GgufHeader& header, const Checkpoint& from, const std::vector<Stored>& tensors) {
  std::map<DType, uint64_t> bytes;
  bool quantized = false;
  for (const Stored& tensor : tensors) {
    if (!tensor.spec.is_norm) bytes[tensor.dtype] += tensor.bytes;
    quantized |= traits(tensor.dtype).quantized;
  }
  DType most = DType::f32;
  for (const auto& [dtype, size] : bytes) {
    if (size > bytes[most]) most = dtype;
  }
  header.add("general.architecture", "llama");
  header.add("general.name", from.name);
  header.add("general.alignment", static_cast<uint32_t>(GgufHeader::kAlignment));
  header.add("general.file_type", file_type(most));
  if (quantized) header.add("general.quantization_version", uint32_t{2});
}

// generation_config.json, in the keys llama.cpp has for it.
void add_sampling(GgufHeader& header, const GenerationDefaults& generation) {
  const auto add = [&](const char* key, const std::optional<double>& value) {
    if (value) header.add(key, static_cast<float>(*value));
  };
  add("general.sampling.temp", generation.temperature);
  add("general.sampling.top_p", generation.top_p);
  add("general.sampling.penalty_repeat", generation.repetition_penalty);
  if (generation.top_k)
    header.add("general.sampling.top_k", static_cast<uint32_t>(*generation.top_k));
}

void add_hyperparameters(GgufHeader& header, const Config& config) {
  const auto add = [&](const char* key, int64_t value) {
    header.add(key, static_cast<uint32_t>(value));
  };
  add("llama.context_length", config.context);
  add("llama.embedding_length", config.hidden);
  add("llama.block_count", config.n_layers);
  add("llama.feed_forward_length", config.intermediate);
  add("llama.attention.head_count", config.n_heads);
  add("llama.attention.head_count_kv", config.n_kv_heads);
  add("llama.attention.key_length", config.head_dim);
  add("llama.attention.value_length", config.head_dim);
  add("llama.rope.dimension_count", config.head_dim);
  add("llama.vocab_size", config.vocab_size);
  header.add("llama.attention.layer_norm_rms_epsilon", static_cast<float>(config.norm_eps));
  header.add("llama.rope.freq_base", static_cast<float>(config.rope_theta));
}

// llama.cpp knows linear and YaRN by keys and Llama 3 by a tensor; the whole dictionary goes along
// so that reading the file again loses nothing.
void add_scaling(GgufHeader& header, const RopeScaling& scaling) {
  if (scaling.kind == Kind::none) return;
  header.add("tinyllama.rope_scaling", make_rope_scaling(scaling));
  if (scaling.kind == Kind::linear || scaling.kind == Kind::yarn) {
    header.add("llama.rope.scaling.type", scaling.kind == Kind::linear ? "linear" : "yarn");
    header.add("llama.rope.scaling.factor", static_cast<float>(scaling.factor));
  }
  if (scaling.original_context != 0)
    header.add("llama.rope.scaling.original_context_length",
               static_cast<uint32_t>(scaling.original_context));
}

void add_pieces(GgufHeader& header, const Vocab& vocab) {
  std::vector<std::string_view> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  std::vector<std::string> pads;  // llama.cpp wants every token to have a text of its own
  pads.reserve(vocab.pieces.size());
  const auto index = piece_index(vocab);
  for (size_t id = 0; id < vocab.pieces.size(); id++) {
    const Piece& piece = vocab.pieces[id];
    if (piece.text.empty()) pads.push_back(unused_text(index, id));
    tokens.push_back(piece.text.empty() ? std::string_view(pads.back()) : piece.text);
    scores.push_back(piece.score);
    types.push_back(static_cast<int32_t>(piece.type));
  }
  header.add("tokenizer.ggml.tokens", tokens);
  header.add("tokenizer.ggml.scores", std::span<const float>(scores));
  header.add("tokenizer.ggml.token_type", std::span<const int32_t>(types));
}

void add_merges(GgufHeader& header, const Vocab& vocab) {
  if (vocab.merges.empty()) return;
  std::vector<std::string> lines;
  for (const auto& [left, right] : vocab.merges) {
    const std::string& first = vocab.pieces[static_cast<size_t>(left)].text;
    if (first.find(' ') != std::string::npos) continue;  // the first space ends the first piece
    lines.push_back(first + " " + vocab.pieces[static_cast<size_t>(right)].text);
  }
  header.add("tinyllama.merges", std::vector<std::string_view>(lines.begin(), lines.end()));
}

void add_tokenizer(GgufHeader& header, const Checkpoint& from) {
  if (!from.vocab) {
    header.add("tokenizer.ggml.model", "none");
    return;
  }
  const Vocab& vocab = *from.vocab;
  header.add("tokenizer.ggml.model", "llama");
  header.add("tokenizer.ggml.pre", "default");
  add_pieces(header, vocab);
  add_merges(header, vocab);
  const auto id = [&](const char* key, TokenId token) {
    if (token >= 0) header.add(key, static_cast<uint32_t>(token));
  };
  id("tokenizer.ggml.bos_token_id", vocab.bos);
  id("tokenizer.ggml.eos_token_id", vocab.eos);
  id("tokenizer.ggml.unknown_token_id", vocab.unk);
  id("tokenizer.ggml.padding_token_id", vocab.pad);
  if (!vocab.extra_eos.empty()) id("tokenizer.ggml.eot_token_id", vocab.extra_eos.front());
  if (vocab.extra_eos.size() > 1) id("tokenizer.ggml.eom_token_id", vocab.extra_eos[1]);
  header.add("tokenizer.ggml.add_bos_token", vocab.add_bos);
  header.add("tokenizer.ggml.add_eos_token", vocab.add_eos);
  header.add("tokenizer.ggml.add_space_prefix", vocab.add_dummy_prefix);
  if (vocab.remove_extra_whitespaces) header.add("tokenizer.ggml.remove_extra_whitespaces", true);
  if (!vocab.prefix_after_special) header.add("tinyllama.prefix_after_special", false);
  if (!vocab.chat_template.empty()) header.add("tokenizer.chat_template", vocab.chat_template);
}

}  // namespace

void write_gguf(const Checkpoint& from, const std::string& path, const DTypeChoice& dtype_of,
                ThreadPool& pool, const Progress& progress) {
  const std::vector<Stored> tensors = plan(from.config, dtype_of);
  std::vector<float> factors;
  if (from.config.rope_scaling.kind == Kind::llama3) factors = llama3_factors(from.config);

  GgufHeader header;
  add_general(header, from, tensors);
  add_sampling(header, from.generation);
  add_hyperparameters(header, from.config);
  add_scaling(header, from.config.rope_scaling);
  add_tokenizer(header, from);
  if (!factors.empty())
    header.add_tensor("rope_freqs.weight", DType::f32, {static_cast<int64_t>(factors.size())});
  uint64_t total = 0, done = 0;
  for (const Stored& tensor : tensors) {
    std::vector<int64_t> dims = {tensor.spec.cols};
    if (!tensor.spec.is_norm) dims.push_back(tensor.spec.rows);
    header.add_tensor(gguf_name(tensor.spec.name), tensor.dtype, dims);
    total += tensor.bytes;
  }

  AtomicFile out(path);
  out.write(header.finish());
  if (!factors.empty()) {
    out.write(std::as_bytes(std::span<const float>(factors)));
    out.pad_to(GgufHeader::kAlignment);
  }
  for (const Stored& tensor : tensors) {
    TL_CHECK(from.find(tensor.spec.name) != nullptr);
    const NamedTensor& source = *from.find(tensor.spec.name);
    stream_rows(
        tensor.spec.rows, row_bytes(tensor.dtype, tensor.spec.cols),
        [&](int64_t first, int64_t n, std::byte* to) {
          convert_rows(source, tensor.spec, tensor.dtype, RowOrder::interleaved, pool, first, n,
                       to);
        },
        [&](std::span<const std::byte> bytes) {
          out.write(bytes);
          done += bytes.size();
          if (progress) progress(tensor.spec.name, done, total);
        });
    out.pad_to(GgufHeader::kAlignment);
    drop_pages(from, source.view);
  }
  out.commit();
}

}  // namespace tinyllama
