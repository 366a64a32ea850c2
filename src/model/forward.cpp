// The forward pass of a Llama (Touvron et al. 2023), one page: pre-norm attention and SwiGLU around
// a residual stream, over a ragged batch. Training, evaluation and serving all run this.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "model/llama.h"

namespace tinyllama {
namespace {

// Throws Error for a token outside the vocabulary; the rest are promises of the caller.
void check(const Batch& batch, const Config& config, const KvCache& cache) {
  int64_t row = 0;
  for (const Segment& segment : batch.segments) {
    TL_CHECK(segment.first_row == row && segment.n_rows > 0 && segment.past >= 0);
    row += segment.n_rows;
    const int64_t n_blocks = KvCache::blocks_for(segment.past + segment.n_rows);
    TL_CHECK(static_cast<int64_t>(segment.kv_blocks.size()) >= n_blocks);
    for (const int32_t block : segment.kv_blocks) TL_CHECK(block >= 0 && block < cache.n_blocks());
    TL_CHECK(segment.inv_freq.empty() ||
             static_cast<int64_t>(segment.inv_freq.size()) == config.head_dim / 2);
  }
  TL_CHECK(row == batch.rows() && row > 0);
  int64_t last = -1;
  for (const int32_t logit_row : batch.logit_rows) {
    TL_CHECK(logit_row > last && logit_row < row);
    last = logit_row;
  }
  for (const int32_t token : batch.tokens) {
    if (token < 0 || token >= config.vocab_size) {
      fail(fmt::format("[forward] token {}: want 0 to {}", token, config.vocab_size - 1));
    }
  }
}

// cos and sin of every row's angles: rope (rows, head_dim).
void fill_rope(const Batch& batch, const RopeFrequencies& own, float* rope) {
  for (const Segment& segment : batch.segments) {
    const bool has_own = segment.inv_freq.empty();
    const std::span<const double> inv_freq = has_own ? own.inv_freq : segment.inv_freq;
    const double scale = has_own ? own.scale : segment.rope_scale;
    for (int64_t i = 0; i < segment.n_rows; i++, rope += 2 * inv_freq.size()) {
      rope_row(inv_freq, scale, segment.past + i, rope);
    }
  }
}

// The first rows and columns of a buffer as a contiguous matrix.
Tensor view(const Tensor& buffer, int64_t rows, int64_t cols) {
  return {buffer.data, DType::f32, rows, cols};
}

}  // namespace

Forward::Forward(const Llama& model, const Batch& batch, const KvCache& cache,
                 Activations& activations)
    : model_(model), batch_(batch), cache_(cache), a_(activations) {
  TL_CHECK(batch.rows() <= a_.max_rows());
  TL_CHECK(all_rows() || (a_.keep() == Keep::nothing && n_logits() <= a_.max_logit_rows()));
  check(batch, model.config(), cache);
  fill_rope(batch, model.rope(), a_.rope_.data());
}

void Forward::run(int64_t n) {
  for (; n > 0 && !done(); n--, next_layer_++) {
    if (next_layer_ == 0) embed();
    if (next_layer_ < model_.config().n_layers) {
      layer(next_layer_);
    } else {
      head();
    }
  }
}

void Forward::embed() {
  const auto n_rope = static_cast<size_t>(batch_.rows() * model_.config().head_dim);
  model_.backend().begin(batch_, std::span(a_.rope_).first(n_rope));
  model_.backend().embed(model_.weights().embed,
                         view(a_.x_, batch_.rows(), model_.config().hidden));
}

void Forward::layer(int64_t index) {
  const Config& c = model_.config();
  const LayerWeights& w = model_.weights().layers[static_cast<size_t>(index)];
  const LayerActivations& a = a_.layers_[static_cast<size_t>(index)];
  // Backward reads keys and values from qkv: where it follows, one layer's cache serves all.
  const KvLayer kv = cache_.layer(a_.keep() == Keep::nothing ? index : 0);
  Backend& backend = model_.backend();

  int64_t rows = batch_.rows();
  Tensor x = view(a_.x_, rows, c.hidden);                            // (rows, hidden)
  const Tensor normed = view(a_.normed_, rows, c.hidden);            // (rows, hidden)
  const Tensor qkv = view(a.qkv, rows, c.q_dim() + 2 * c.kv_dim());  // (rows, q, k and v)
  Tensor attended = view(a.attended, rows, c.q_dim());               // (rows, q_dim)

  // x += W_o attention(rope(W_qkv norm(x)))
  keep(x, a.x);
  backend.norm_linear(x, w.attention_norm, c.norm_eps, *w.qkv, normed, qkv);
  backend.rope_store(qkv, c.n_heads, kv);
  const bool last = index + 1 == c.n_layers;
  if (last && n_logits() == 0) return;  // the cache has what it needs
  backend.attention(qkv, c.n_heads, kv, attended, a.softmax);
  if (last && !all_rows()) {  // from here on, only rows with logits count
    rows = n_logits();
    x = view(a_.last_, rows, c.hidden);
    backend.gather_logit_rows(view(a_.x_, batch_.rows(), c.hidden), x);
    backend.gather_logit_rows(attended, view(a.qkv, rows, c.q_dim()));
    attended = view(a.qkv, rows, c.q_dim());
  }
  backend.linear(*w.output, attended, x, true);

  // x += W_down (silu(W_gate norm(x)) * W_up norm(x))
  const Tensor mlp_normed = view(a_.normed_, rows, c.hidden);        // (rows, hidden)
  const Tensor gate_up = view(a.gate_up, rows, 2 * c.intermediate);  // (rows, gate and up)
  const Tensor activated = view(a_.normed_, rows, c.intermediate);   // (rows, intermediate)
  keep(x, a.middle);
  backend.norm_linear(x, w.mlp_norm, c.norm_eps, *w.gate_up, mlp_normed, gate_up);
  backend.swiglu_linear(gate_up, *w.down, activated, x, true);
}

void Forward::keep(const Tensor& x, const Tensor& to) {
  if (to) model_.backend().copy(x.data, to.data, x.bytes());
}

void Forward::repeat(int64_t index) {
  const Tensor x = a_.layers_[static_cast<size_t>(index)].x;
  model_.backend().copy(x.data, a_.x_.data, view(x, batch_.rows(), x.cols).bytes());
  layer(index);
}

void Forward::head() {
  const int64_t n = n_logits();
  if (n == 0) return;
  const Config& c = model_.config();
  const Tensor last = view(all_rows() ? a_.x_ : a_.last_, n, c.hidden);  // (logit_rows, hidden)
  const Tensor normed = view(a_.normed_, n, c.hidden);                   // (logit_rows, hidden)
  model_.backend().norm_linear(last, model_.weights().norm, c.norm_eps, *model_.weights().head,
                               normed, a_.logits(n));  // (logit_rows, vocab)
}

void forward(const Llama& model, const Batch& batch, const KvCache& cache,
             Activations& activations) {
  Forward pass(model, batch, cache, activations);
  pass.run(model.config().n_layers + 1);
}

}  // namespace tinyllama
