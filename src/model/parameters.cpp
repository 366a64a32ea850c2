#include "model/parameters.h"

#include <fmt/format.h>

#include "base/error.h"
#include "tensor/quant.h"

namespace tinyllama {

Parameters::Parameters(Backend& backend, const Config& config)
    : layers(static_cast<size_t>(config.n_layers)), backend_(backend), config_(config) {
  struct Need {
    Tensor* tensor;
    int64_t rows, cols;
  };
  std::vector<Need> needs = {{&embed, config.vocab_size, config.hidden}};
  for (LayerParameters& layer : layers) {
    needs.push_back({&layer.attention_norm, 1, config.hidden});
    needs.push_back({&layer.qkv, config.q_dim() + 2 * config.kv_dim(), config.hidden});
    needs.push_back({&layer.output, config.hidden, config.q_dim()});
    needs.push_back({&layer.mlp_norm, 1, config.hidden});
    needs.push_back({&layer.gate_up, 2 * config.intermediate, config.hidden});
    needs.push_back({&layer.down, config.hidden, config.intermediate});
  }
  needs.push_back({&norm, 1, config.hidden});
  if (!config.tied_embeddings) needs.push_back({&head, config.vocab_size, config.hidden});
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
  if (config.tied_embeddings) head = embed;
}

std::vector<Tensor> Parameters::tensors() const {
  const int64_t q = config_.q_dim(), kv = config_.kv_dim(), wide = config_.intermediate;
  std::vector<Tensor> tensors = {embed};
  for (const LayerParameters& layer : layers) {
    tensors.insert(tensors.end(), {layer.attention_norm, layer.qkv.rows_slice(0, q),
                                   layer.qkv.rows_slice(q, kv), layer.qkv.rows_slice(q + kv, kv),
                                   layer.output, layer.mlp_norm, layer.gate_up.rows_slice(0, wide),
                                   layer.gate_up.rows_slice(wide, wide), layer.down});
  }
  tensors.push_back(norm);
  if (!config_.tied_embeddings) tensors.push_back(head);
  return tensors;
}

void Parameters::for_each(const std::function<void(const TensorSpec&, Tensor)>& visit) const {
  const std::vector<TensorSpec> specs = tensor_specs(config_);
  const std::vector<Tensor> all = tensors();
  TL_CHECK(all.size() == specs.size());
  for (size_t i = 0; i < specs.size(); i++) {
    TL_CHECK(all[i].rows == specs[i].rows && all[i].cols == specs[i].cols);
    visit(specs[i], all[i]);
  }
}

Tensor Parameters::flat() const {
  return {memory_.data(), DType::f32, 1, static_cast<int64_t>(memory_.size() / sizeof(float))};
}

void Parameters::read(const Checkpoint& checkpoint) {
  std::vector<float> row;
  for_each([&](const TensorSpec& spec, Tensor to) {
    const NamedTensor* from = checkpoint.find(spec.name);
    if (from == nullptr) fail(fmt::format("[load] {}: no {}", checkpoint.path, spec.name));
    if (from->view.rows != spec.rows || from->view.cols != spec.cols) {
      fail(fmt::format("[load] {}: want ({}, {}), got ({}, {}) in {}", spec.name, spec.rows,
                       spec.cols, from->view.rows, from->view.cols, checkpoint.path));
    }
    row.resize(static_cast<size_t>(spec.cols));
    for (int64_t r = 0; r < spec.rows; r++) {
      decode_row(from->view.dtype, from->row(r), row.data(), spec.cols);
      backend_.copy_from_host(reinterpret_cast<const std::byte*>(row.data()), to.row(r),
                              row.size() * sizeof(float));
    }
  });
}

Checkpoint Parameters::checkpoint() const {
  Checkpoint checkpoint;
  checkpoint.path = "parameters";
  checkpoint.config = config_;
  for_each([&](const TensorSpec& spec, Tensor tensor) {
    checkpoint.tensors[spec.name] = {spec.name, tensor};
  });
  return checkpoint;
}

}  // namespace tinyllama
