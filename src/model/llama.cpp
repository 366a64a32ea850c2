// From a checkpoint's named tensors to packed weights. Matrices that read the same input are joined
// here, once, so that the forward pass makes one product of them.
#include "model/llama.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/error.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

constexpr int64_t kNormAlignment = 16;  // floats: every norm starts on a cache line

bool within(const std::byte* p, const std::byte* begin, size_t size) {
  return p >= begin && p < begin + size;
}

// Packs tensor after tensor, and gives the pages that were read back to the system.
class Loader {
 public:
  Loader(Backend& backend, const Checkpoint& checkpoint, Weights& weights, const Progress& progress,
         std::optional<DType> as)
      : backend_(backend),
        checkpoint_(checkpoint),
        weights_(weights),
        progress_(progress),
        as_(as) {
    const Config& config = checkpoint.config;
    const int64_t n_norms = 2 * config.n_layers + 1;
    norm_stride_ = (config.hidden + kNormAlignment - 1) / kNormAlignment * kNormAlignment;
    if (weights.norms.data() == nullptr) {
      weights.norms = backend.alloc(static_cast<size_t>(n_norms * norm_stride_) * sizeof(float));
    }
    weights.bytes = 0;
    total_ = checkpoint.tensor_bytes();
  }

  TensorView tensor(const std::string& name) const { return find(name).view; }

  // The matrices of `names`, stacked; into the memory of those of an earlier load, if any.
  void matrix(std::initializer_list<std::string> names, std::unique_ptr<Packed>& packed) {
    std::vector<PackPart> parts;
    for (const std::string& name : names) {
      parts.push_back({find(name).view, find(name).interleaved_dim, as_});
    }
    if (packed == nullptr) {
      packed = backend_.pack(parts);
    } else {
      backend_.repack(parts, *packed);
    }
    weights_.bytes += packed->bytes;
    for (const PackPart& part : parts) done(part.w);
  }

  // The embedding where it lies, or a converted copy.
  TensorView embedding(const std::string& name) {
    const TensorView stored = tensor(name);
    if (!as_ || *as_ == stored.dtype) return stored;
    TL_CHECK(stored.dtype == DType::f32);
    Buffer& copy = weights_.converted_embed;
    const size_t row = row_bytes(*as_, stored.cols);
    if (copy.data() == nullptr) copy = backend_.alloc(row * static_cast<size_t>(stored.rows));
    std::vector<std::byte> values(row);
    for (int64_t r = 0; r < stored.rows; r++) {
      encode_row(*as_, stored.row_as<float>(r), values.data(), stored.cols);
      backend_.copy_from_host(values.data(), copy.data() + row * static_cast<size_t>(r), row);
    }
    return {copy.data(), *as_, stored.rows, stored.cols};
  }

  // The next norm vector, in FP32: (1, hidden).
  TensorView norm(const std::string& name) {
    const TensorView stored = tensor(name);
    std::vector<float> values(static_cast<size_t>(stored.cols));
    decode_row(stored.dtype, stored.data, values.data(), stored.cols);
    if (as_) {
      std::vector<std::byte> rounded(row_bytes(*as_, stored.cols));
      encode_row(*as_, values.data(), rounded.data(), stored.cols);
      decode_row(*as_, rounded.data(), values.data(), stored.cols);
    }
    std::byte* to =
        weights_.norms.data() + static_cast<size_t>(n_norms_++ * norm_stride_) * sizeof(float);
    const TensorView norm(to, DType::f32, 1, stored.cols);
    backend_.copy_from_host(reinterpret_cast<const std::byte*>(values.data()), to, norm.bytes());
    weights_.bytes += norm.bytes();
    done(stored);
    return norm;
  }

 private:
  const NamedTensor& find(const std::string& name) const {
    const NamedTensor* tensor = checkpoint_.find(name);
    if (tensor == nullptr) fail(fmt::format("[load] {}: no {}", checkpoint_.path, name));
    return *tensor;
  }

  // The embedding stays mapped, also where it is the head: a row of it is read for every token.
  void done(const TensorView& stored) {
    if (stored.data != weights_.embed.data) {
      for (const auto& file : checkpoint_.files) {
        const std::byte* begin = file->bytes().data();
        if (!within(stored.data, begin, file->size())) continue;
        file->drop(static_cast<size_t>(stored.data - begin), stored.bytes());
      }
    }
    done_ += stored.bytes();
    if (progress_) progress_("loading", std::min(done_, total_), total_);
  }

  Backend& backend_;
  const Checkpoint& checkpoint_;
  Weights& weights_;
  const Progress& progress_;
  std::optional<DType> as_;
  int64_t norm_stride_, n_norms_ = 0;
  uint64_t done_ = 0, total_ = 0;
};

// The file or copy that holds `data`; null for memory that is not the checkpoint's own.
std::shared_ptr<const void> owner_of(const Checkpoint& checkpoint, const std::byte* data) {
  for (const auto& file : checkpoint.files) {
    if (within(data, file->bytes().data(), file->size())) return file;
  }
  for (const auto& copy : checkpoint.copies) {
    if (within(data, copy->data(), copy->size())) return copy;
  }
  return nullptr;
}

}  // namespace

Llama::Llama(Backend& backend, const Checkpoint& checkpoint, const Progress& progress,
             std::optional<DType> as)
    : backend_(backend),
      config_(checkpoint.config),
      rope_(rope_frequencies(config_, config_.context)),
      as_(as) {
  weights_.layers.resize(static_cast<size_t>(config_.n_layers));
  load(checkpoint, progress);
}

void Llama::reload(const Checkpoint& checkpoint) {
  TL_CHECK(checkpoint.config == config_);
  load(checkpoint, nullptr);
}

void Llama::load(const Checkpoint& checkpoint, const Progress& progress) {
  Loader load(backend_, checkpoint, weights_, progress, as_);
  const std::string embed = "model.embed_tokens.weight";
  weights_.embed = load.embedding(embed);
  embed_owner_ = owner_of(checkpoint, weights_.embed.data);
  weights_.dtype = as_.value_or(load.tensor("model.layers.0.self_attn.q_proj.weight").dtype);
  weights_.bytes = row_bytes(weights_.embed.dtype, config_.hidden);
  for (int64_t i = 0; i < config_.n_layers; i++) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
    LayerWeights& w = weights_.layers[static_cast<size_t>(i)];
    w.attention_norm = load.norm(layer + "input_layernorm.weight");
    load.matrix(
        {attention + "q_proj.weight", attention + "k_proj.weight", attention + "v_proj.weight"},
        w.qkv);
    load.matrix({attention + "o_proj.weight"}, w.output);
    w.mlp_norm = load.norm(layer + "post_attention_layernorm.weight");
    load.matrix({mlp + "gate_proj.weight", mlp + "up_proj.weight"}, w.gate_up);
    load.matrix({mlp + "down_proj.weight"}, w.down);
  }
  weights_.norm = load.norm("model.norm.weight");
  load.matrix({config_.tied_embeddings ? embed : "lm_head.weight"}, weights_.head);
  // A fault may map much more than it asks for (Linux: the whole folio, up to 2 MiB), also of
  // neighbours that were given back before. Rows of the embedding come back as tokens ask for them.
  for (const auto& file : checkpoint.files) file->drop(0, file->size());
}

DType Llama::default_kv_type() const {
  return traits(weights_.dtype).quantized ? DType::f16 : weights_.dtype;
}

Activations::Activations(Backend& backend, const Config& config, int64_t max_rows,
                         int64_t max_logit_rows, Keep keep)
    : max_rows_(max_rows),
      max_logit_rows_(max_logit_rows),
      keep_(keep),
      layers_(static_cast<size_t>(config.n_layers)) {
  TL_CHECK(max_rows > 0 && max_logit_rows > 0);
  struct Need {
    Tensor* tensor;
    int64_t rows, cols;
  };
  const int64_t qkv = config.q_dim() + 2 * config.kv_dim();
  std::vector<Need> needs = {
      {&x_, max_rows, config.hidden},
      {&normed_, max_rows, std::max({config.hidden, config.intermediate, config.q_dim()})},
      {&logits_, max_logit_rows, config.vocab_size},
  };
  const bool keeps = keep != Keep::nothing;
  if (keeps) {
    needs.push_back({&dx_, max_rows, config.hidden});
    needs.push_back({&dqkv_, max_rows, qkv});
    needs.push_back({&losses_, 1, max_rows});
    for (LayerActivations& layer : layers_) needs.push_back({&layer.x, max_rows, config.hidden});
  } else {
    needs.push_back({&last_, max_logit_rows, config.hidden});
  }
  for (LayerActivations& layer : layers_) {
    needs.push_back({&layer.qkv, max_rows, qkv});
    needs.push_back({&layer.gate_up, max_rows, 2 * config.intermediate});
    if (keeps) {
      needs.push_back({&layer.softmax, max_rows, 2 * config.n_heads});
      needs.push_back({&layer.attended, max_rows, config.q_dim()});
      needs.push_back({&layer.middle, max_rows, config.hidden});
    }
    if (keep != Keep::everything) break;  // the first layer's are everyone's
  }
  constexpr size_t kAlignment = 64;
  size_t bytes = 0;
  for (const Need& need : needs) {
    *need.tensor = Tensor(nullptr, DType::f32, need.rows, need.cols);
    bytes += (need.tensor->bytes() + kAlignment - 1) / kAlignment * kAlignment;
  }
  memory_ = backend.alloc(bytes);
  std::byte* next = memory_.data();
  for (const Need& need : needs) {
    need.tensor->data = next;
    next += (need.tensor->bytes() + kAlignment - 1) / kAlignment * kAlignment;
  }
  if (!keeps) layers_[0].attended = normed_;
  for (size_t i = 1; i < layers_.size() && keep != Keep::everything; i++) {
    const Tensor x = layers_[i].x;
    layers_[i] = layers_[0];
    layers_[i].x = x;
  }
  rope_.resize(static_cast<size_t>(max_rows * config.head_dim));
}

Tensor Activations::logits(int64_t n) const {
  TL_CHECK(n >= 0 && n <= max_logit_rows_);
  return logits_.rows_slice(0, n);
}

}  // namespace tinyllama
