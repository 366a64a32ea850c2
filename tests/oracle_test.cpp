// Real numbers from elsewhere: PyTorch's logits, taps and greedy texts (../shared/oracle), and what
// the small trained models say in llama2.c (../shared/assets). Tolerances are derived, not chosen.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/file.h"
#include "base/rng.h"
#include "formats/hf_config.h"
#include "formats/safetensors.h"
#include "support/assets.h"
#include "support/backends.h"
#include "support/oracle.h"
#include "support/run_model.h"
#include "support/tiny_model.h"
#include "tensor/float16.h"
#include "text/tokenizer.h"

namespace tinyllama::testing {
namespace {

// A measured difference beside its bound, for the log; the test then asserts it.
void report(const std::string& what, const Difference& d, double bound) {
  std::printf("           %-44s |difference| %.2g, bound %.2g, largest %.3g\n", what.c_str(),
              d.largest, bound, d.magnitude);
}

// ---- RoPE

TEST(RopeOracle, EveryScalingTo12Digits) {
  TINYLLAMA_NEEDS_ASSET("oracle/rope.json");
  const json oracle = read_json("oracle/rope.json");
  int n = 0;
  for (const json& c : oracle["cases"]) {
    SCOPED_TRACE(c["name"].get<std::string>());
    Config config;
    config.head_dim = c["head_dim"];
    config.rope_theta = c["rope_theta"];
    config.context = c["max_position_embeddings"];
    config.rope_scaling = parse_rope_scaling(c["rope_scaling"].dump(), "rope.json");
    const int64_t length = c["seq_len"].is_null() ? config.context : c["seq_len"].get<int64_t>();
    const RopeFrequencies rope = rope_frequencies(config, length);
    const auto want = c["inv_freq_f64"].get<std::vector<double>>();
    ASSERT_EQ(rope.inv_freq.size(), want.size());
    for (size_t i = 0; i < want.size(); i++) {
      EXPECT_NEAR(rope.inv_freq[i] / want[i], 1, 1e-12) << "pair " << i;
    }
    EXPECT_NEAR(rope.scale / c["attention_factor"].get<double>(), 1, 1e-12);
    n++;
  }
  EXPECT_EQ(n, 15);
}

TEST(RopeOracle, HalfRotation) {
  TINYLLAMA_NEEDS_ASSET("oracle/rope.json");
  const json example = read_json("oracle/rope.json")["rotate_half_example"];
  const RopeFrequencies rope = rope_frequencies(tiny_config({.head_dim = 8}), 16);
  const auto x = example["x"].get<std::vector<double>>();
  for (size_t r = 0; r < example["pos"].size(); r++) {
    float row[8];
    rope_row(rope, example["pos"][r], row);
    for (size_t i = 0; i < 4; i++) {
      const double cos = row[i], sin = row[4 + i];
      EXPECT_NEAR(x[i] * cos - x[4 + i] * sin, example["y"][r][i].get<double>(), 1e-7);
      EXPECT_NEAR(x[4 + i] * cos + x[i] * sin, example["y"][r][4 + i].get<double>(), 1e-7);
    }
  }
}

// ---- The reference itself, so that what is held to it is held to PyTorch

void expect_tap(const Safetensors& oracle, const std::string& name, int64_t sequence,
                const reference::Matrix& got, int64_t head_dim) {
  const SafetensorsEntry& entry = oracle.at("tap." + name);
  const std::vector<float> want = entry.to_f32();
  // Taps of heads are (batch, heads, rows, head_dim), the others (batch, rows, features).
  const int64_t heads = head_dim == 0 ? 1 : got.cols / head_dim;
  const int64_t width = head_dim == 0 ? got.cols : head_dim;
  double largest = 0;
  for (int64_t h = 0; h < heads; h++) {
    for (int64_t r = 0; r < got.rows; r++) {
      for (int64_t i = 0; i < width; i++) {
        const auto at = static_cast<size_t>(((sequence * heads + h) * got.rows + r) * width + i);
        largest = std::max(largest, std::fabs(got.row(r)[h * width + i] - want[at]));
      }
    }
  }
  EXPECT_LT(largest, 1e-6) << name;  // taps were stored as FP32
}

TEST(ReferenceOracle, ReproducesPyTorchInDoubleWithEveryTap) {
  TINYLLAMA_NEEDS_ASSET("oracle/nano");
  const reference::Model model = dequantized(open_checkpoint(asset("oracle/nano")));
  const Safetensors oracle = open_safetensors(asset("oracle/nano/oracle.safetensors"));
  const std::vector<int32_t> tokens = ids(oracle.at("input_ids"));
  const std::vector<double> want = doubles(oracle.at("logits_f64"));
  const size_t n = tokens.size() / 2;
  for (size_t s = 0; s < 2; s++) {
    const auto pass = reference::forward(model, std::span(tokens).subspan(s * n, n));
    const Difference d =
        compare(pass.logits.values, std::span(want).subspan(s * want.size() / 2, want.size() / 2));
    EXPECT_LT(d.largest, 1e-12);
    const auto i = static_cast<int64_t>(s);
    for (size_t index = 0; index < pass.layers.size(); index++) {
      const reference::Layer& layer = pass.layers[index];
      const std::string name = "layer" + std::to_string(index) + ".";
      expect_tap(oracle, name + "attn_norm", i, layer.attn_norm, 0);
      expect_tap(oracle, name + "q_rope", i, layer.q, model.config.head_dim);
      expect_tap(oracle, name + "k_rope", i, layer.k, model.config.head_dim);
      expect_tap(oracle, name + "v", i, layer.v, model.config.head_dim);
      expect_tap(oracle, name + "attn_out", i, layer.attn_out, 0);
      expect_tap(oracle, name + "mlp_norm", i, layer.mlp_norm, 0);
      expect_tap(oracle, name + "out", i, layer.out, 0);
    }
    expect_tap(oracle, "final_norm", i, pass.final_norm, 0);
  }
}

// ---- The engine, on every instruction set

class Oracle : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend(GetParam());

  // FP32 weights and cache against exact logits.
  void expect_fp32_close(const Config& config, const std::string& what, std::span<const float> got,
                         std::span<const double> want, int64_t positions, double suggested) const {
    const Difference d = compare(got, want);
    const double bound = std::min(suggested, fp32_tolerance(config, positions, d.magnitude));
    report(GetParam() + " " + what, d, bound);
    EXPECT_LE(d.largest, bound) << what;
  }

  // Both sequences of an oracle in one batch.
  Logits both(const Llama& model, DType kv, const std::vector<int32_t>& tokens) {
    KvCache cache(*backend_, model.config(), kv, 8);
    KvSequence first(cache), second(cache);
    const auto half = std::span(tokens).first(tokens.size() / 2);
    const Piece pieces[] = {{&first, half}, {&second, std::span(tokens).last(half.size())}};
    return step(model, cache, pieces);
  }

  void expect_greedy(const Llama& model, DType kv, const json& oracle) {
    const auto prompt = oracle["greedy"]["prompt"].get<std::vector<int32_t>>();
    const auto want = oracle["greedy"]["new_tokens"].get<std::vector<int32_t>>();
    EXPECT_EQ(greedy(model, kv, prompt, static_cast<int64_t>(want.size())), want);
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, Oracle, ::testing::ValuesIn(backend_names()),
                         [](const auto& backend) { return backend.param; });

constexpr double kNanoSuggested = 2e-5, kMicroSuggested = 1e-4;  // oracle/README.md

TEST_P(Oracle, Nano) {
  TINYLLAMA_NEEDS_ASSET("oracle/nano");
  const Llama model(*backend_, open_checkpoint(asset("oracle/nano")));
  const Safetensors oracle = open_safetensors(asset("oracle/nano/oracle.safetensors"));
  const Logits got = both(model, DType::f32, ids(oracle.at("input_ids")));
  expect_fp32_close(model.config(), "nano", got, doubles(oracle.at("logits_f64")), 48,
                    kNanoSuggested);
  expect_greedy(model, DType::f32, read_json("oracle/nano/oracle.json"));
}

TEST_P(Oracle, NanoUnderEveryRopeScaling) {
  TINYLLAMA_NEEDS_ASSET("oracle/nano");
  const Checkpoint checkpoint = open_checkpoint(asset("oracle/nano"));
  const Llama model(*backend_, checkpoint);
  const Safetensors oracle = open_safetensors(asset("oracle/nano/rope_variant_logits.safetensors"));
  const std::vector<int32_t> tokens = ids(oracle.at("input_ids"));
  const json scalings = json::parse(oracle.metadata.at("configs"));
  EXPECT_EQ(scalings.size(), 4u);
  for (const auto& [name, scaling] : scalings.items()) {
    Config config = model.config();
    config.rope_scaling = parse_rope_scaling(scaling.dump(), name);
    config.context = name == "dynamic2_mpe32" ? 32 : 64;
    const RopeFrequencies rope = rope_frequencies(config, static_cast<int64_t>(tokens.size()));
    const std::vector<double> want = doubles(oracle.at("logits." + name));
    const Logits all = all_logits(model, DType::f32, tokens, 0, &rope);
    expect_fp32_close(config, "nano " + name, std::span(all).last(want.size()), want, 60,
                      kNanoSuggested);
    // The same as the model's own set-up (dynamic's own is for its context only).
    if (config.rope_scaling.kind == RopeScaling::Kind::dynamic) continue;
    Checkpoint own = checkpoint;
    own.config = config;
    EXPECT_TRUE(same_bits(all_logits(Llama(*backend_, own), DType::f32, tokens), all)) << name;
  }
}

// A BF16 file, widened: the same model in FP32.
TEST_P(Oracle, NanoBf16InFp32) {
  TINYLLAMA_NEEDS_ASSET("oracle/nano-bf16");
  const reference::Model weights = dequantized(open_checkpoint(asset("oracle/nano-bf16")));
  const MemoryCheckpoint checkpoint(weights, DType::f32);
  const Llama model(*backend_, *checkpoint);
  const Safetensors oracle = open_safetensors(asset("oracle/nano-bf16/oracle.safetensors"));
  const Logits got = both(model, DType::f32, ids(oracle.at("input_ids")));
  expect_fp32_close(model.config(), "nano-bf16 in FP32", got, doubles(oracle.at("logits")), 48,
                    kNanoSuggested);
  expect_greedy(model, DType::f32, read_json("oracle/nano-bf16/oracle.json"));
}

// As it is: BF16 weights and cache. PyTorch's run in pure BF16 is 4.1e-2 away from exact.
TEST_P(Oracle, NanoBf16) {
  TINYLLAMA_NEEDS_ASSET("oracle/nano-bf16");
  const Llama model(*backend_, open_checkpoint(asset("oracle/nano-bf16")));
  EXPECT_EQ(model.default_kv_type(), DType::bf16);
  const Safetensors oracle = open_safetensors(asset("oracle/nano-bf16/oracle.safetensors"));
  const std::vector<double> want = doubles(oracle.at("logits"));
  const Difference torch = compare(oracle.at("logits_pure_bf16_run").to_f32(), want);
  const Difference d = compare(both(model, DType::bf16, ids(oracle.at("input_ids"))), want);
  report(GetParam() + " nano-bf16", d, torch.largest);
  EXPECT_LT(d.largest, torch.largest);
  expect_greedy(model, DType::bf16, read_json("oracle/nano-bf16/oracle.json"));
}

// ---- micro, whose weights are a formula

TEST(MicroOracle, WeightsAreTheFormulas) {
  TINYLLAMA_NEEDS_ASSET("oracle/micro");
  const json known = read_json("oracle/micro/init_known_answers.json");
  const auto hex = [](const json& j) { return std::stoull(j.get<std::string>(), nullptr, 16); };
  const std::string embed = "model.embed_tokens.weight";
  EXPECT_EQ(fnv1a64(embed), hex(known["fnv1a64(" + embed + ")"]));
  for (uint64_t i = 0; i < 3; i++) {
    EXPECT_EQ(hash_bits(embed, 42, i), hex(known["hash_bits[0:3]"][i]));
  }
  EXPECT_EQ(known["first4"].size(), micro().tensors.size());
  for (const auto& [name, w] : micro().tensors) {
    for (size_t i = 0; i < 4; i++) EXPECT_EQ(w[i], known["first4"][name][i].get<float>()) << name;
    double sum = 0;
    for (const float x : w) sum += x;
    EXPECT_EQ(sum, known["sum_f64"][name].get<double>()) << name;
  }
}

TEST_P(Oracle, Micro) {
  TINYLLAMA_NEEDS_ASSET("oracle/micro");
  const MemoryCheckpoint checkpoint(micro(), DType::f32);
  const Llama model(*backend_, *checkpoint);
  const Safetensors oracle = open_safetensors(asset("oracle/micro/oracle.safetensors"));
  expect_fp32_close(model.config(), "micro",
                    all_logits(model, DType::f32, ids(oracle.at("input_ids"))),
                    doubles(oracle.at("logits")), 24, kMicroSuggested);
  if (GetParam() == "naive") return;  // the rest takes it minutes

  const json greedy_oracle = read_json("oracle/micro/oracle.json");
  expect_greedy(model, DType::f32, greedy_oracle);
  const std::vector<int32_t> tokens =
      ids(open_safetensors(asset("oracle/micro/train_data.safetensors")).at("tokens"));
  KvCache cache(*backend_, model.config(), DType::f32, 8);
  KvSequence first(cache), second(cache);
  const Piece pieces[] = {{&first, std::span(tokens).first(256)},
                          {&second, std::span(tokens).subspan(257, 256)}};
  expect_fp32_close(model.config(), "micro, 256 positions", step(model, cache, pieces, Rows::last),
                    doubles(oracle.at("batch0_last_logits")), 256, kMicroSuggested);
}

// ---- Other weight types, against the reference on what the weights decode to

// What the CPU backend rounds on purpose before a product with weights of `type`.
void round_input(DType type, std::span<double> x) {
  if (type == DType::bf16) {
    for (double& v : x) v = bf16_to_f32(f32_to_bf16(static_cast<float>(v)));
  }
  if (!traits(type).quantized) return;
  for (size_t b = 0; b < x.size(); b += 32) {
    double largest = 0;
    for (size_t i = b; i < b + 32; i++) largest = std::max(largest, std::fabs(x[i]));
    const double scale = largest / 127;
    for (size_t i = b; i < b + 32 && scale > 0; i++) x[i] = std::nearbyint(x[i] / scale) * scale;
  }
}

// The relative error that one rounding of inputs puts on a product's outputs, root mean square. A
// uniform rounding of step s has s / sqrt(12). int8: s = max / 127 with max about 2.5 times the
// root mean square of 32 values; allow 4. BF16: s is at most 2^-7 of a value.
double input_noise(DType type) {
  if (traits(type).quantized) return 4 / (127 * std::sqrt(12.0));
  return type == DType::bf16 ? 0x1p-7 / std::sqrt(12.0) : 0;
}

// One weight type of one model: the engine's checkpoint and what the reference makes of it.
class TypeCase {
 public:
  // Matrices whose columns do not fill the type's blocks stay F16.
  TypeCase(const reference::Model& weights, DType type)
      : type_(type), checkpoint_(weights, [type](const TensorSpec& spec) {
          return spec.cols % traits(type).block_size == 0 ? type : DType::f16;
        }) {
    decoded_ = dequantized(*checkpoint_);
    rounding_.linear_input = [this](const std::string& weight, std::span<double> x) {
      round_input((*checkpoint_).tensors.at(weight).view.dtype, x);
    };
  }
  TypeCase(const TypeCase&) = delete;
  TypeCase& operator=(const TypeCase&) = delete;

  // Against exact products the error is the deliberate rounding of inputs: independent noise of 7
  // products a layer and the head, which reaches the logits at their own scale; 6 sigma for the
  // largest of many.
  void expect_noise_bounded(const std::string& what, int64_t n) const {
    const Config& config = decoded_.config;
    const std::vector<int32_t> tokens = random_tokens(n, config.vocab_size, 1);
    const std::vector<double> exact = reference::forward(decoded_, tokens).logits.values;
    double square = 0;
    for (const double x : exact) square += x * x;
    const double rms = std::sqrt(square / static_cast<double>(exact.size()));
    const auto products = static_cast<double>(7 * config.n_layers + 1);
    const double noise = 6 * std::sqrt(products) * input_noise(type_) * rms;
    for (const std::string& isa : cpu_isas()) {
      const auto backend = make_backend(isa);
      const Difference d =
          compare(all_logits(Llama(*backend, *checkpoint_), DType::f32, tokens), exact);
      const double bound = noise + fp32_tolerance(config, n, d.magnitude);
      report(what + " " + isa + ", to exact", d, bound);
      EXPECT_LE(d.largest, bound) << what << " " << isa;
    }
  }

  // Against a reference that rounds the same inputs the engine is FP32-close, unless FP32's own
  // noise carries some input over a rounding boundary; then everything after that input is noise of
  // the above kind. Of single tokens, at least half meet no boundary.
  void expect_rounding_reproduced(const std::string& what, int64_t n) const {
    const Config& config = decoded_.config;
    const std::vector<int32_t> tokens = random_tokens(n, config.vocab_size, 2);
    std::vector<std::vector<double>> want;
    for (const int32_t& token : tokens) {
      want.push_back(reference::forward(decoded_, {&token, 1}, rounding_).logits.values);
    }
    for (const std::string& isa : cpu_isas()) {
      const auto backend = make_backend(isa);
      const Llama model(*backend, *checkpoint_);
      int64_t same = 0;
      double largest = 0;
      for (size_t i = 0; i < want.size(); i++) {
        const Difference d = compare(all_logits(model, DType::f32, {&tokens[i], 1}), want[i]);
        if (d.largest > fp32_tolerance(config, 1, d.magnitude)) continue;
        same++;
        largest = std::max(largest, d.largest);
      }
      std::printf("           %-44s %d of %d tokens within %.2g of the same rounding\n",
                  (what + " " + isa).c_str(), static_cast<int>(same), static_cast<int>(n), largest);
      EXPECT_GE(same, n / 2) << what << " " << isa;
    }
  }

 private:
  DType type_;
  MemoryCheckpoint checkpoint_;
  reference::Model decoded_;
  reference::Rounding rounding_;
};

class TypeOracle : public ::testing::TestWithParam<DType> {
 protected:
  std::string name() const { return std::string(traits(GetParam()).name); }
};
std::string type_name(const ::testing::TestParamInfo<DType>& type) {
  return std::string(traits(type.param).name);
}
// Nano's rows of 64 are too short for the blocks of 256.
class ShortRowTypeOracle : public TypeOracle {};
INSTANTIATE_TEST_SUITE_P(Types, ShortRowTypeOracle,
                         ::testing::Values(DType::f16, DType::bf16, DType::q4_0, DType::q8_0),
                         type_name);
INSTANTIATE_TEST_SUITE_P(Types, TypeOracle,
                         ::testing::Values(DType::f16, DType::bf16, DType::q4_0, DType::q8_0,
                                           DType::q4_k, DType::q6_k),
                         type_name);

TEST_P(ShortRowTypeOracle, Nano) {
  TINYLLAMA_NEEDS_ASSET("oracle/nano");
  const reference::Model weights = dequantized(open_checkpoint(asset("oracle/nano")));
  const TypeCase c(weights, GetParam());
  c.expect_noise_bounded("nano " + name(), 60);
  c.expect_rounding_reproduced("nano " + name(), 60);
}

TEST_P(TypeOracle, Micro) {
  TINYLLAMA_NEEDS_ASSET("oracle/micro");
  const TypeCase c(micro(), GetParam());
  c.expect_noise_bounded("micro " + name(), 8);
  c.expect_rounding_reproduced("micro " + name(), 16);
}

// ---- Trained models: the same story in every format, and llama2.c's

// As llama2.c's `run -t 0 -n n` prints it: the prompt and what follows, n tokens after bos.
std::string story(const Llama& model, const Vocab& vocab, const std::string& prompt, size_t n) {
  const Tokenizer tokenizer(vocab);
  std::vector<int32_t> tokens = tokenizer.encode_prompt(prompt);
  EXPECT_EQ(tokens.at(0), 1);
  const std::vector<int32_t> rest =
      greedy(model, DType::f32, tokens, static_cast<int64_t>(n + 1 - tokens.size()));
  tokens.insert(tokens.end(), rest.begin(), rest.end());
  return tokenizer.decode(std::span<const TokenId>(tokens).subspan(1));
}

// The text under the heading that starts with `heading`.
std::string told(const std::string& heading) {
  const std::string all = read_text_file(asset("assets/verify/generation.txt"));
  const size_t at = all.find("### " + heading);
  if (at == std::string::npos) return "no such heading";
  const size_t begin = all.find('\n', at) + 1;
  const size_t end = std::min(all.find("\n###", begin), all.find_last_not_of('\n') + 1);
  return all.substr(begin, end - begin);
}

class Stories : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Backends, Stories, ::testing::ValuesIn(cpu_isas()),
                         [](const auto& backend) { return backend.param; });

TEST_P(Stories, OneStoryInThreeFormats) {
  TINYLLAMA_NEEDS_ASSET("assets/models/stories260K");
  const Checkpoint bin = open_checkpoint(asset("assets/models/stories260K/stories260K.bin"));
  const Checkpoint gguf =
      open_checkpoint(asset("assets/models/stories260K-gguf/tinyllamas-stories-260k-f32.gguf"));
  const TemporaryFolder folder;
  ThreadPool pool(2);
  write_hf_folder(gguf, folder / "hf", DType::f32, pool, nullptr);
  const Checkpoint hf = open_checkpoint(folder / "hf");

  const std::vector<int32_t> tokens = random_tokens(300, bin.config.vocab_size, 1);
  const Llama from_bin(*backend_, bin);
  const Logits want = all_logits(from_bin, DType::f32, tokens);
  const std::string text = told("stories260K -t 0 -n 200");
  EXPECT_EQ(story(from_bin, bin.vocab.value(), "Once upon a time", 200), text);
  for (const Checkpoint* other : {&gguf, &hf}) {
    SCOPED_TRACE(other->format);
    EXPECT_NE(other->format, bin.format);
    const Llama model(*backend_, *other);
    EXPECT_TRUE(same_bits(all_logits(model, DType::f32, tokens), want));
    EXPECT_EQ(story(model, other->vocab.value(), "Once upon a time", 200), text);
  }
}

TEST_P(Stories, CharacterModel) {
  TINYLLAMA_NEEDS_ASSET("assets/models/EN10-tok105");
  const Checkpoint bin = open_checkpoint(asset("assets/models/EN10-tok105/model5000.bin"));
  const Llama model(*backend_, bin);
  EXPECT_EQ(story(model, bin.vocab.value(), "Once upon a time", 256),
            told("EN10-tok105 -t 0 'Once upon a time'"));
}

}  // namespace
}  // namespace tinyllama::testing
