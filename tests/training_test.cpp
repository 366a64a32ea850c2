// Training on random models and matrices: each operation against loops in double precision, those
// against finite differences; the same bits for any number of threads; the same logits as
// inference.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/error.h"
#include "model/backward.h"
#include "model/optimizer.h"
#include "support/backends.h"
#include "support/run_model.h"
#include "support/tiny_model.h"
#include "support/training_data.h"
#include "tensor/float16.h"

namespace tinyllama::testing {
namespace {

// ---- The naive operations against finite differences: what every backend is held to

// The naive backend's y = f(x) has dx = its gradient of sum(weights * y) at x: compared along a
// random direction. FP32 outputs limit the step; differences are central.
void expect_derivative(const std::string& what, Matrix& x, const Matrix& dx,
                       const std::function<double()>& f, double tolerance = 2e-4) {
  for (uint64_t seed = 1; seed <= 3; seed++) {
    const Matrix direction(x.rows, x.cols, 1000 + seed);
    const std::vector<float> at = x.values;
    const double step = 0x1p-7;
    const auto moved = [&](double by) {
      for (size_t i = 0; i < at.size(); i++)
        x.values[i] = static_cast<float>(at[i] + by * static_cast<double>(direction.values[i]));
      return f();
    };
    // Richardson's extrapolation of two central differences: an error of fourth order.
    const double wide = (moved(step) - moved(-step)) / (2 * step);
    const double narrow = (moved(step / 2) - moved(-step / 2)) / step;
    x.values = at;
    const double want = (4 * narrow - wide) / 3, got = dx.dot(direction);
    double magnitude = 0;
    for (const float v : dx.values) magnitude += static_cast<double>(v) * static_cast<double>(v);
    EXPECT_NEAR(got, want, tolerance * std::sqrt(magnitude) + 1e-6) << what;
  }
}

TEST(FiniteDifferences, Linear) {
  NaiveBackend b;
  Matrix w(5, 7, 1), x(3, 7, 2), y(3, 5, 3), dx(3, 7, 4), dw(5, 7, 0, 0);
  const Matrix dy(3, 5, 5);
  const auto f = [&] {
    const PackPart part{w, 0};
    b.linear(*b.pack({&part, 1}), x, y, false);
    return y.dot(dy);
  };
  const PackPart part{w, 0};
  const auto packed = b.pack({&part, 1});
  b.training().linear_input(*packed, dy, dx);
  b.training().linear_weight(*packed, dy, x, dw);
  expect_derivative("dx", x, dx, f);
  expect_derivative("dw", w, dw, f);
}

TEST(FiniteDifferences, RmsNorm) {
  NaiveBackend b;
  Matrix x(3, 9, 1), w(1, 9, 2), y(3, 9, 3), dx(3, 9, 0, 0), dw(1, 9, 0, 0);
  const Matrix dy(3, 9, 4);
  const auto f = [&] {
    b.rms_norm(x, w, 1e-5, y);
    return y.dot(dy);
  };
  b.training().rms_norm_backward(x, w, 1e-5, dy, dx, dw);
  expect_derivative("dx", x, dx, f);
  expect_derivative("dw", w, dw, f);
}

TEST(FiniteDifferences, SwiGlu) {
  NaiveBackend b;
  Matrix x(3, 10, 1, 3), y(3, 5, 2), dx = x;
  const Matrix dy(3, 5, 3);
  b.training().swiglu_backward(dy, dx);
  expect_derivative("d gate_up", x, dx, [&] {
    b.swiglu(x, y);
    return y.dot(dy);
  });
}

TEST(FiniteDifferences, AttentionWithRotationAndDocuments) {
  constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 6, kWidth = (kHeads + 2 * kKvHeads) * kDim;
  NaiveBackend b;
  const Documents documents({5, 1, 7}, 50, kDim);
  const int64_t rows = documents.batch.rows();
  b.begin(documents.batch, documents.rope);
  const KvShape shape{kKvHeads, kDim, DType::f32};
  const size_t block = b.kv_block_bytes(shape);
  const Buffer memory = b.alloc(block * 3);
  Matrix qkv(rows, kWidth, 1, 2), y(rows, kHeads * kDim, 2), softmax(rows, 2 * kHeads, 3);
  const Matrix dy(rows, kHeads * kDim, 4);
  Matrix rotated = qkv;
  const auto f = [&] {
    rotated = qkv;
    b.rope_store(rotated, kHeads, {memory.data(), block, shape});
    b.attention(rotated, kHeads, {memory.data(), block, shape}, y, softmax);
    return y.dot(dy);
  };
  f();
  Matrix dqkv(rows, kWidth, 5);
  b.training().attention_backward(rotated, kHeads, shape, y, softmax, dy, dqkv);
  expect_derivative("dqkv", qkv, dqkv, f, 1e-3);
}

TEST(FiniteDifferences, CrossEntropy) {
  NaiveBackend b;
  Matrix x(4, 11, 1, 3), losses(1, 4, 2);
  const std::vector<int32_t> targets = {0, 10, kIgnoredTarget, 4};
  Matrix dx = x;
  b.training().cross_entropy(dx, targets, 0.5, losses);
  EXPECT_EQ(losses.values[2], 0);
  expect_derivative("d logits", x, dx, [&] {
    Matrix logits = x;
    b.training().cross_entropy(logits, targets, 1, losses);
    double sum = 0;
    for (const float loss : losses.values) sum += static_cast<double>(loss);
    return 0.5 * sum;
  });
}

// The gradient of a whole model, tied and not, against differences of its loss.
TEST(FiniteDifferences, WholeModel) {
  for (const bool tied : {false, true}) {
    NaiveBackend b;
    const Config config = tiny_config({.hidden = 12,
                                       .intermediate = 10,
                                       .n_heads = 2,
                                       .n_kv_heads = 1,
                                       .head_dim = 6,
                                       .vocab = 9,
                                       .tied = tied});
    const MemoryCheckpoint checkpoint(random_model(config, 3), DType::f32);
    Parameters weights(b, config), gradients(b, config);
    weights.read(*checkpoint);
    Llama model(b, weights.checkpoint());
    TrainingPass pass(b, config, 8, 2, Keep::everything);
    const std::vector<int32_t> tokens = {1, 4, 8, 0, 3, 3}, targets = {4, 8, -100, 3, 3, 5};
    const std::vector<int64_t> documents = {4, 2};
    const auto loss = [&](Parameters& to) {
      model.reload(weights.checkpoint());
      return pass.run(model, tokens, documents, targets, 1, to);
    };
    loss(gradients);
    Parameters ignored(b, config);
    gradients.for_each([&](const TensorSpec& spec, const Tensor& gradient) {
      Tensor w;
      weights.for_each([&](const TensorSpec& other, const Tensor& t) {
        if (other.name == spec.name) w = t;
      });
      Matrix x(w.rows, w.cols, 0), dx = x;
      std::memcpy(x.values.data(), w.data, w.bytes());
      std::memcpy(dx.values.data(), gradient.data, gradient.bytes());
      expect_derivative(
          spec.name, x, dx,
          [&] {
            std::memcpy(w.data, x.values.data(), w.bytes());
            return loss(ignored);
          },
          2e-3);
      std::memcpy(w.data, x.values.data(), w.bytes());
    });
  }
}

// ---- The CPU against the naive operations

class TrainingOpsTest : public ::testing::TestWithParam<std::string> {
 protected:
  static void expect_close(const std::string& what, const Matrix& got, const Matrix& want,
                           double tolerance) {
    const Difference d = compare(got.values, want.values);
    EXPECT_LE(d.largest, tolerance * d.magnitude) << what;
  }

  NaiveBackend naive_;
  std::unique_ptr<Backend> cpu_ = make_cpu({2, GetParam()});
};

INSTANTIATE_TEST_SUITE_P(Isas, TrainingOpsTest, ::testing::ValuesIn(cpu_isas()),
                         [](const auto& isa) { return isa.param; });

// A product's error in FP32: roundings of a chain over k, their mean zero (as fp32_tolerance()).
double product_tolerance(int64_t k) {
  return 8 * std::sqrt(static_cast<double>(k)) * 0x1p-24;
}

TEST_P(TrainingOpsTest, LinearOfOddShapes) {
  struct Shape {
    int64_t n, rows, cols;
  };
  for (const Shape shape : {Shape{1, 1, 1},
                            {3, 17, 5},
                            {7, 33, 64},
                            {65, 100, 31},
                            {130, 300, 70},
                            {40, 530, 600},
                            {50, 1100, 90},
                            {1300, 20, 30},
                            {600, 40, 48}}) {
    const auto [n, rows, cols] = shape;
    SCOPED_TRACE(std::to_string(n) + " " + std::to_string(rows) + " " + std::to_string(cols));
    Matrix w(rows, cols, 1), x(n, cols, 2), dy(n, rows, 3);
    Matrix dw(rows, cols, 4), dx(n, cols, 5);
    // Weights in one part, in BF16 as stored or converted, and in parts of two types. What BF16
    // products would round is BF16 already.
    for (Matrix* m : {&w, &x, &dy})
      for (float& value : m->values) value = bf16_to_f32(f32_to_bf16(value));
    std::vector<std::byte> half(row_bytes(DType::bf16, cols) * static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; r++) {
      encode_row(DType::bf16, w.values.data() + r * cols,
                 half.data() + static_cast<size_t>(r) * row_bytes(DType::bf16, cols), cols);
    }
    const TensorView wide = w, narrow(half.data(), DType::bf16, rows, cols);
    const int64_t cut = (rows + 1) / 2;
    const std::vector<std::vector<PackPart>> kinds = {
        {{wide, 0}},
        {{narrow, 0}},
        {{wide, 0, DType::bf16}},
        {{wide.rows_slice(0, cut), 0}, {narrow.rows_slice(cut, rows - cut), 0}}};
    for (const std::vector<PackPart>& parts : kinds) {
      if (parts.back().w.rows == 0) continue;
      const auto packed = cpu_->pack(parts), naive = naive_.pack(parts);
      Matrix got = dx, want = dx, dw_got = dw, dw_want = dw;
      cpu_->training().linear_input(*packed, dy, got);
      naive_.training().linear_input(*naive, dy, want);
      expect_close("dx", got, want, product_tolerance(rows));
      cpu_->training().linear_weight(*packed, dy, x, dw_got);
      naive_.training().linear_weight(*naive, dy, x, dw_want);
      expect_close("dw", dw_got, dw_want, product_tolerance(n));
    }
  }
}

TEST_P(TrainingOpsTest, LinearOfQuantizedWeightsIsRefused) {
  std::vector<std::byte> bytes(row_bytes(DType::q8_0, 64) * 4);
  const PackPart part{TensorView(bytes.data(), DType::q8_0, 4, 64), 0};
  const Matrix dy(1, 4, 1);
  Matrix dx(1, 64, 2);
  EXPECT_THROW(cpu_->training().linear_input(*cpu_->pack({&part, 1}), dy, dx), Error);
}

TEST_P(TrainingOpsTest, RowsOfOddLengths) {
  for (const int64_t cols : {1, 15, 64, 333, 2049}) {
    for (const int64_t rows : {1, 37}) {
      SCOPED_TRACE(cols);
      const Matrix x(rows, cols, 1), w(1, cols, 2), dy(rows, cols, 3);
      Matrix dx(rows, cols, 4), dx_want = dx, dw(1, cols, 5), dw_want = dw;
      cpu_->training().rms_norm_backward(x, w, 1e-5, dy, dx, dw);
      naive_.training().rms_norm_backward(x, w, 1e-5, dy, dx_want, dw_want);
      expect_close("norm dx", dx, dx_want, 2e-6);
      expect_close("norm dw", dw, dw_want, 2e-6);

      Matrix gate_up(rows, 2 * cols, 6, 6), gate_up_want = gate_up;
      cpu_->training().swiglu_backward(dy, gate_up);
      naive_.training().swiglu_backward(dy, gate_up_want);
      expect_close("swiglu", gate_up, gate_up_want, 2e-6);

      std::vector<int32_t> targets(static_cast<size_t>(rows));
      for (size_t r = 0; r < targets.size(); r++)
        targets[r] = r % 5 == 3
                         ? kIgnoredTarget
                         : static_cast<int32_t>(hash_key(9, r) % static_cast<uint64_t>(cols));
      Matrix logits(rows, cols, 7, 8), logits_want = logits, losses(1, rows, 8),
                                       losses_want = losses;
      cpu_->training().cross_entropy(logits, targets, 0.25, losses);
      naive_.training().cross_entropy(logits_want, targets, 0.25, losses_want);
      expect_close("d logits", logits, logits_want, 2e-6);
      for (size_t r = 0; r < targets.size(); r++)
        EXPECT_NEAR(losses.values[r], losses_want.values[r], 4e-6);

      const Documents documents({rows}, 10, 8);
      cpu_->begin(documents.batch, documents.rope);
      naive_.begin(documents.batch, documents.rope);
      Matrix table(10, cols, 9), table_want = table;
      cpu_->training().embed_backward(dy, table);
      naive_.training().embed_backward(dy, table_want);
      expect_close("embed", table, table_want, 2e-6);

      EXPECT_NEAR(cpu_->training().sum_of_squares(x) / naive_.training().sum_of_squares(x), 1,
                  1e-6);
      const AdamWStep step{0.01, 0.9, 0.95, 1e-8, 0.1, 0.5, 3};
      Matrix moved = x, moved_want = x, m(rows, cols, 10), m_want = m, v(rows, cols, 11);
      for (float& square : v.values) square = std::fabs(square);
      Matrix v_want = v;
      cpu_->training().adamw(step, dy, moved, m, v);
      naive_.training().adamw(step, dy, moved_want, m_want, v_want);
      expect_close("w", moved, moved_want, 2e-6);
      expect_close("m", m, m_want, 2e-6);
      expect_close("v", v, v_want, 2e-6);
    }
  }
}

TEST_P(TrainingOpsTest, AttentionOfOddShapes) {
  struct Shape {
    int64_t heads, kv_heads, dim;
    std::initializer_list<int64_t> documents;
  };
  for (const Shape& shape : {Shape{1, 1, 2, {1}},
                             {4, 2, 16, {64, 65, 3}},
                             {6, 2, 10, {130}},
                             {8, 1, 64, {1, 1, 100}},
                             {2, 2, 80, {63, 129}}}) {
    SCOPED_TRACE(shape.dim);
    const Documents documents(shape.documents, 50, shape.dim);
    const int64_t rows = documents.batch.rows();
    const int64_t width = (shape.heads + 2 * shape.kv_heads) * shape.dim;
    const KvShape kv{shape.kv_heads, shape.dim, DType::f32};
    const Matrix dy(rows, shape.heads * shape.dim, 2);
    Matrix got(rows, width, 3), want = got;
    for (Backend* b : {cpu_.get(), static_cast<Backend*>(&naive_)}) {
      Matrix qkv(rows, width, 1, 2), y(rows, shape.heads * shape.dim, 4);
      Matrix softmax(rows, 2 * shape.heads, 5);
      const size_t block = b->kv_block_bytes(kv);
      const Buffer memory = b->alloc(block * 64);
      const KvLayer layer{memory.data(), block, kv};
      b->begin(documents.batch, documents.rope);
      b->rope_store(qkv, shape.heads, layer);
      b->attention(qkv, shape.heads, layer, y, softmax);
      b->training().attention_backward(qkv, shape.heads, kv, y, softmax, dy,
                                       b == &naive_ ? want : got);
    }
    expect_close("dqkv", got, want, 5e-6);
  }
}

// ---- The whole pass

struct Trained {
  std::vector<float> gradients, weights, losses;
};

constexpr TinyShape kOddShape = {
    .hidden = 72, .intermediate = 100, .n_heads = 6, .n_kv_heads = 2, .head_dim = 12, .vocab = 97};

// A pass on a model of odd sizes; with `step`, the optimizer's step and a pass on what it made.
Trained train(Backend& b, Keep keep, bool step, bool tied = false, std::optional<DType> as = {}) {
  TinyShape shape = kOddShape;
  shape.tied = tied;
  const Config config = tiny_config(shape);
  const MemoryCheckpoint checkpoint(random_model(config, 3), DType::f32);
  Parameters weights(b, config), gradients(b, config);
  weights.read(*checkpoint);
  Llama model(b, weights.checkpoint(), nullptr, as);
  Optimizer optimizer(b, config, {});
  TrainingPass pass(b, config, 700, 4, keep);
  const std::vector<int64_t> documents = {300, 1, 130, 200};
  const std::vector<int32_t> tokens = random_tokens(631, config.vocab_size, 8);
  std::vector<int32_t> targets = random_tokens(631, config.vocab_size, 9);
  targets[300] = targets[12] = kIgnoredTarget;
  pass.run(model, tokens, documents, targets, 1.0 / 629, gradients);
  if (step) {
    optimizer.step(weights, gradients, gradient_norm(b, gradients), 1e-3);
    model.reload(weights.checkpoint());
    pass.run(model, tokens, documents, targets, 1.0 / 629, gradients);
  }
  const auto floats = [](const Tensor& t) {
    return std::vector<float>(t.row_as<float>(0), t.row_as<float>(0) + t.elements());
  };
  return {floats(gradients.flat()),
          floats(weights.flat()),
          {pass.losses().begin(), pass.losses().end()}};
}

TEST_P(TrainingOpsTest, TheSameBitsForAnyNumberOfThreadsAndKeepingLess) {
  for (const std::optional<DType> as : {std::optional<DType>(), std::optional(DType::bf16)}) {
    const Trained one = train(*make_cpu({1, GetParam()}), Keep::everything, true, false, as);
    for (const int threads : {2, 3, 8}) {
      const auto keep = threads == 3 ? Keep::inputs : Keep::everything;
      const Trained other = train(*make_cpu({threads, GetParam()}), keep, true, false, as);
      EXPECT_TRUE(same_bits(one.gradients, other.gradients)) << threads;
      EXPECT_TRUE(same_bits(one.weights, other.weights)) << threads;
      EXPECT_TRUE(same_bits(one.losses, other.losses)) << threads;
    }
  }
}

TEST_P(TrainingOpsTest, WholePassAgainstTheNaiveOne) {
  for (const bool tied : {false, true}) {
    const Trained got = train(*cpu_, Keep::everything, false, tied);
    const Trained want = train(naive_, Keep::everything, false, tied);
    const Difference gradients = compare(got.gradients, want.gradients);
    EXPECT_LE(gradients.largest, 1e-5 * gradients.magnitude);
    // A loss is the difference of two numbers made of logits, which are no larger than losses are.
    const Difference losses = compare(got.losses, want.losses);
    EXPECT_LE(losses.largest, 2 * fp32_tolerance(tiny_config(kOddShape), 300, losses.magnitude));
  }
}

class TrainingModel : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend(GetParam(), 2);
};

INSTANTIATE_TEST_SUITE_P(Backends, TrainingModel, ::testing::ValuesIn(backend_names()),
                         [](const auto& backend) { return backend.param; });

// A document's logits in a packed training batch have the bits of inference alone, also those that
// the loss is made of, chunk by chunk.
TEST_P(TrainingModel, LogitsAreThoseOfInference) {
  const Config config = tiny_config({.vocab = 64});
  for (const DType type : {DType::f32, DType::bf16}) {
    const MemoryCheckpoint checkpoint(random_model(config, 4), type);
    const Llama model(*backend_, *checkpoint);
    const Documents documents({70, 3, 64}, config.vocab_size, config.head_dim);
    const int64_t rows = documents.batch.rows();
    KvCache cache(*backend_, config, type, 8);
    for (const Keep keep : {Keep::inputs, Keep::everything}) {
      Activations activations(*backend_, config, rows, rows, keep);
      forward(model, documents.batch, cache, activations);
      const Tensor all = activations.logits(rows);
      for (const Segment& segment : documents.batch.segments) {
        const auto tokens = std::span(documents.batch.tokens)
                                .subspan(static_cast<size_t>(segment.first_row),
                                         static_cast<size_t>(segment.n_rows));
        const Logits alone = all_logits(model, type, tokens);
        EXPECT_TRUE(same_bits({all.row_as<float>(segment.first_row), alone.size()}, alone));
      }
    }
    // Losses of the chunked head from those logits.
    std::vector<int32_t> targets = random_tokens(rows, config.vocab_size, 11);
    TrainingPass pass(*backend_, config, rows, 3, Keep::everything, type);
    Parameters gradients(*backend_, config);
    pass.run(model, documents.batch.tokens, std::vector<int64_t>{70, 3, 64}, targets, 1, gradients);
    Activations activations(*backend_, config, rows, rows);
    forward(model, documents.batch, cache, activations);
    std::vector<float> losses(static_cast<size_t>(rows));
    backend_->training().cross_entropy(
        activations.logits(rows), targets, 1,
        {reinterpret_cast<std::byte*>(losses.data()), DType::f32, 1, rows});
    EXPECT_TRUE(same_bits(pass.losses(), losses));
    pass.loss(model, documents.batch.tokens, std::vector<int64_t>{70, 3, 64}, targets);
    EXPECT_TRUE(same_bits(pass.losses(), losses));
  }
}

// BF16 of FP32 master weights is what a BF16 file of them would be, also after an update.
TEST_P(TrainingModel, ConvertedIsAsStored) {
  for (const bool tied : {false, true}) {
    const Config config = tiny_config({.tied = tied});
    reference::Model before = random_model(config, 4), after = random_model(config, 5);
    const MemoryCheckpoint first(before, DType::f32), second(after, DType::f32);
    for (auto& [name, values] : after.tensors)
      for (float& value : values) value = bf16_to_f32(f32_to_bf16(value));
    const MemoryCheckpoint stored(after, DType::bf16);
    Llama converted(*backend_, *first, nullptr, DType::bf16);
    converted.reload(*second);
    const Llama wanted(*backend_, *stored);
    EXPECT_EQ(converted.default_kv_type(), DType::bf16);
    EXPECT_EQ(converted.weights().bytes, wanted.weights().bytes);
    const std::vector<int32_t> tokens = random_tokens(70, config.vocab_size, 1);
    EXPECT_TRUE(same_bits(all_logits(converted, DType::bf16, tokens),
                          all_logits(wanted, DType::bf16, tokens)));
  }
}

TEST_P(TrainingModel, MicroBatchesAddUp) {
  const Config config = tiny_config({});
  const MemoryCheckpoint checkpoint(random_model(config, 4), DType::f32);
  const Llama model(*backend_, *checkpoint);
  TrainingPass pass(*backend_, config, 64, 2, Keep::everything);
  const std::vector<int32_t> tokens = random_tokens(64, config.vocab_size, 1);
  const std::vector<int32_t> targets = random_tokens(64, config.vocab_size, 2);
  Parameters whole(*backend_, config), parts(*backend_, config);
  const double sum =
      pass.run(model, tokens, std::vector<int64_t>{40, 24}, targets, 1.0 / 64, whole);
  double added = 0;
  for (const auto& [first, n] : {std::pair<size_t, size_t>{0, 40}, {40, 24}})
    added += pass.run(model, std::span(tokens).subspan(first, n),
                      std::vector<int64_t>{static_cast<int64_t>(n)},
                      std::span(targets).subspan(first, n), 1.0 / 64, parts);
  EXPECT_NEAR(sum, added, 1e-9 * sum);
  const auto floats = [](const Tensor& t) {
    return std::span<const float>(t.row_as<float>(0), static_cast<size_t>(t.elements()));
  };
  const Difference d = compare(floats(whole.flat()), floats(parts.flat()));
  EXPECT_LE(d.largest, 2e-6 * d.magnitude);
}

TEST(TrainingPass, RefusesWhatDoesNotFit) {
  NaiveBackend b;
  const Config config = tiny_config({});
  const MemoryCheckpoint checkpoint(random_model(config, 4), DType::f32);
  const Llama model(b, *checkpoint);
  TrainingPass pass(b, config, 8, 2, Keep::everything);
  Parameters gradients(b, config);
  using Ints = std::vector<int32_t>;
  using Lengths = std::vector<int64_t>;
  const auto run = [&](const Ints& tokens, const Lengths& documents, const Ints& targets) {
    pass.run(model, tokens, documents, targets, 1, gradients);
  };
  const Ints three = {1, 2, 3};
  EXPECT_NO_THROW(run(three, {3}, three));
  EXPECT_THROW(run(three, {3}, {1, 2}), Error);
  EXPECT_THROW(run({}, {}, {}), Error);
  EXPECT_THROW(run(Ints(9, 1), {9}, Ints(9, 1)), Error);
  EXPECT_THROW(run(three, {2}, three), Error);
  EXPECT_THROW(run(three, {2, 2}, three), Error);
  EXPECT_THROW(run(three, {3, 0}, three), Error);
  EXPECT_THROW(run(three, {-1, 4}, three), Error);
  EXPECT_THROW(run(three, {1, 1, 1}, three), Error);
  EXPECT_THROW(run(three, {3}, {1, 2, 50}), Error);
  EXPECT_THROW(run(three, {3}, {1, 2, -1}), Error);
  EXPECT_THROW(run({1, 2, 50}, {3}, three), Error);
}

TEST(Parameters, HoldACheckpointUnderItsNames) {
  for (const bool tied : {false, true}) {
    NaiveBackend b;
    const Config config = tiny_config({.tied = tied});
    const reference::Model model = random_model(config, 5);
    const MemoryCheckpoint interleaved(model, DType::f32, true);
    Parameters parameters(b, config);
    parameters.read(*interleaved);
    EXPECT_EQ(dequantized(parameters.checkpoint()).tensors, model.tensors);
    Checkpoint broken = *interleaved;
    broken.tensors.erase("model.norm.weight");
    EXPECT_THROW(parameters.read(broken), Error);
    const MemoryCheckpoint other(random_model(tiny_config({.intermediate = 40}), 5), DType::f32);
    EXPECT_THROW(parameters.read(*other), Error);
  }
}

}  // namespace
}  // namespace tinyllama::testing
