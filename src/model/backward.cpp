// The backward pass, one page: forward.cpp read from its end. A layer's products are taken apart
// into the gradient of their weights and that of their input; what lies between them is computed
// again from what was kept. dx is the gradient of the residual stream all along.
#include "model/backward.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace tinyllama {
namespace {

constexpr int64_t kLogitRows = 512;  // rows whose logits exist at one time

// The first rows and columns of a buffer as a contiguous matrix.
Tensor view(const Tensor& buffer, int64_t rows, int64_t cols) {
  return {buffer.data, DType::f32, rows, cols};
}

// One layer's cache, of whole blocks for each document.
KvCache one_layer_cache(Backend& backend, Config config, DType type, int64_t rows,
                        int64_t documents) {
  config.n_layers = 1;
  return {backend, config, type, rows / kKvBlock + documents};
}

double sum(std::span<const float> losses) {
  double total = 0;
  for (const float loss : losses) total += static_cast<double>(loss);
  return total;
}

}  // namespace

Backward::Backward(const Llama& model, const Batch& batch, Forward& forward,
                   Activations& activations)
    : model_(model),
      batch_(batch),
      forward_(forward),
      a_(activations),
      backend_(model.backend()),
      training_(backend_.training()) {
  TL_CHECK(a_.keep() != Keep::nothing);
}

void Backward::losses(std::span<const int32_t> targets, std::span<float> losses) {
  head(targets, 0, nullptr);
  copy_losses(losses);
}

void Backward::run(std::span<const int32_t> targets, double scale, Parameters& gradients,
                   std::span<float> losses) {
  const Config& c = model_.config();
  TL_CHECK(gradients.config() == c);
  const Tensor dx = view(a_.dx_, batch_.rows(), c.hidden);
  training_.clear(dx);
  head(targets, scale, &gradients);
  for (int64_t index = c.n_layers - 1; index >= 0; index--)
    layer(index, gradients.layers[static_cast<size_t>(index)]);
  training_.embed_backward(dx, gradients.embed);
  copy_losses(losses);
}

void Backward::copy_losses(std::span<float> losses) const {
  TL_CHECK(static_cast<int64_t>(losses.size()) == batch_.rows());
  backend_.copy_to_host(a_.losses_.data, reinterpret_cast<std::byte*>(losses.data()),
                        losses.size_bytes());
}

void Backward::head(std::span<const int32_t> targets, double scale, const Parameters* gradients) {
  TL_CHECK(static_cast<int64_t>(targets.size()) == batch_.rows());
  const Config& c = model_.config();
  const Weights& w = model_.weights();
  for (int64_t row = 0; row < batch_.rows(); row += a_.max_logit_rows()) {
    const int64_t n = std::min(a_.max_logit_rows(), batch_.rows() - row);
    const Tensor x = view(a_.x_, batch_.rows(), c.hidden).rows_slice(row, n);    // (n, hidden)
    const Tensor dx = view(a_.dx_, batch_.rows(), c.hidden).rows_slice(row, n);  // (n, hidden)
    const Tensor normed = view(a_.normed_, n, c.hidden);                         // (n, hidden)
    const Tensor logits = a_.logits(n);                                          // (n, vocab)
    const Tensor losses(a_.losses_.data + static_cast<size_t>(row) * sizeof(float), DType::f32, 1,
                        n);
    // loss = -log softmax(W_head norm(x))[target]
    backend_.norm_linear(x, w.norm, c.norm_eps, *w.head, normed, logits);
    training_.cross_entropy(
        logits, targets.subspan(static_cast<size_t>(row), static_cast<size_t>(n)), scale, losses);
    if (gradients == nullptr) continue;
    training_.linear_weight(*w.head, logits, normed, gradients->head);
    training_.linear_input(*w.head, logits, normed);
    training_.rms_norm_backward(x, w.norm, c.norm_eps, normed, dx, gradients->norm);
  }
}

void Backward::layer(int64_t index, const LayerParameters& g) {
  if (a_.keep() == Keep::inputs) forward_.repeat(index);
  const Config& c = model_.config();
  const LayerWeights& w = model_.weights().layers[static_cast<size_t>(index)];
  const LayerActivations& a = a_.layers_[static_cast<size_t>(index)];

  const int64_t rows = batch_.rows();
  const Tensor x = view(a.x, rows, c.hidden);                            // (rows, hidden)
  const Tensor qkv = view(a.qkv, rows, c.q_dim() + 2 * c.kv_dim());      // (rows, q, k and v)
  const Tensor softmax = view(a.softmax, rows, 2 * c.n_heads);           // (rows, 2 n_heads)
  const Tensor attended = view(a.attended, rows, c.q_dim());             // (rows, q_dim)
  const Tensor middle = view(a.middle, rows, c.hidden);                  // (rows, hidden)
  const Tensor gate_up = view(a.gate_up, rows, 2 * c.intermediate);      // (rows, gate and up)
  const Tensor dx = view(a_.dx_, rows, c.hidden);                        // (rows, hidden)
  const Tensor dqkv = view(a_.dqkv_, rows, c.q_dim() + 2 * c.kv_dim());  // (rows, q, k and v)
  // One buffer, whose uses follow each other.
  const Tensor normed = view(a_.normed_, rows, c.hidden);           // (rows, hidden)
  const Tensor d_attended = view(a_.normed_, rows, c.q_dim());      // (rows, q_dim)
  const Tensor activated = view(a_.normed_, rows, c.intermediate);  // (rows, intermediate)

  // x += W_down (silu(W_gate norm(x)) * W_up norm(x))
  backend_.swiglu(gate_up, activated);
  training_.linear_weight(*w.down, dx, activated, g.down);
  training_.linear_input(*w.down, dx, activated);
  training_.swiglu_backward(activated, gate_up);
  backend_.rms_norm(middle, w.mlp_norm, c.norm_eps, normed);
  training_.linear_weight(*w.gate_up, gate_up, normed, g.gate_up);
  training_.linear_input(*w.gate_up, gate_up, normed);
  training_.rms_norm_backward(middle, w.mlp_norm, c.norm_eps, normed, dx, g.mlp_norm);

  // x += W_o attention(rope(W_qkv norm(x)))
  training_.linear_weight(*w.output, dx, attended, g.output);
  training_.linear_input(*w.output, dx, d_attended);
  training_.attention_backward(qkv, c.n_heads, {c.n_kv_heads, c.head_dim, DType::f32}, attended,
                               softmax, d_attended, dqkv);
  backend_.rms_norm(x, w.attention_norm, c.norm_eps, normed);
  training_.linear_weight(*w.qkv, dqkv, normed, g.qkv);
  training_.linear_input(*w.qkv, dqkv, normed);
  training_.rms_norm_backward(x, w.attention_norm, c.norm_eps, normed, dx, g.attention_norm);
}

TrainingPass::TrainingPass(Backend& backend, const Config& config, int64_t max_rows,
                           int64_t max_documents, Keep keep, DType kv_type)
    : cache_(one_layer_cache(backend, config, kv_type, max_rows, max_documents)),
      activations_(backend, config, max_rows, std::min(max_rows, kLogitRows), keep),
      blocks_(static_cast<size_t>(cache_.n_blocks())) {
  for (size_t i = 0; i < blocks_.size(); i++) blocks_[i] = static_cast<int32_t>(i);
}

Batch TrainingPass::batch_of(std::span<const int32_t> tokens,
                             std::span<const int64_t> documents) const {
  Batch batch;
  batch.tokens.assign(tokens.begin(), tokens.end());
  for (int64_t r = 0; r < batch.rows(); r++) batch.logit_rows.push_back(static_cast<int32_t>(r));
  int64_t row = 0;
  size_t block = 0;
  for (const int64_t length : documents) {
    const auto n_blocks = static_cast<size_t>(KvCache::blocks_for(length));
    if (length < 1 || length > batch.rows() - row || n_blocks > blocks_.size() - block) {
      fail(
          fmt::format("[train] document of {} tokens at row {}: want {} rows in all, in at most "
                      "{} blocks of {}",
                      length, row, batch.rows(), blocks_.size(), kKvBlock));
    }
    Segment& segment = batch.segments.emplace_back();
    segment.first_row = row;
    segment.n_rows = length;
    segment.kv_blocks = std::span(blocks_).subspan(block, n_blocks);
    row += length;
    block += n_blocks;
  }
  if (row != batch.rows()) {
    fail(fmt::format("[train] documents of {} tokens in all for {} rows", row, batch.rows()));
  }
  return batch;
}

void TrainingPass::check(const Config& config, std::span<const int32_t> tokens,
                         std::span<const int32_t> targets) const {
  const auto rows = static_cast<int64_t>(tokens.size());
  if (rows < 1 || rows > activations_.max_rows() || targets.size() != tokens.size()) {
    fail(fmt::format("[train] {} tokens and {} targets: want as many of both, 1 to {}", rows,
                     targets.size(), activations_.max_rows()));
  }
  for (const int32_t target : targets) {
    if (target != kIgnoredTarget && (target < 0 || target >= config.vocab_size)) {
      fail(fmt::format("[train] target {}: want 0 to {}, or {} for none", target,
                       config.vocab_size - 1, kIgnoredTarget));
    }
  }
}

double TrainingPass::run(const Llama& model, std::span<const int32_t> tokens,
                         std::span<const int64_t> documents, std::span<const int32_t> targets,
                         double scale, Parameters& gradients) {
  check(model.config(), tokens, targets);
  const Batch batch = batch_of(tokens, documents);
  Forward forward(model, batch, cache_, activations_);
  forward.run(model.config().n_layers);
  losses_.resize(tokens.size());
  Backward(model, batch, forward, activations_).run(targets, scale, gradients, losses_);
  return sum(losses_);
}

double TrainingPass::loss(const Llama& model, std::span<const int32_t> tokens,
                          std::span<const int64_t> documents, std::span<const int32_t> targets) {
  check(model.config(), tokens, targets);
  const Batch batch = batch_of(tokens, documents);
  Forward forward(model, batch, cache_, activations_);
  forward.run(model.config().n_layers);
  losses_.resize(tokens.size());
  Backward(model, batch, forward, activations_).losses(targets, losses_);
  return sum(losses_);
}

}  // namespace tinyllama
