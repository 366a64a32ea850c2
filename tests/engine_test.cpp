// The engine on a tiny random model, against a loop that runs one sequence alone with a cache of
// its own; and perplexity against the logits.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "infer/engine.h"
#include "infer/stable_math.h"
#include "support/backends.h"
#include "support/byte_vocab.h"
#include "support/run_model.h"
#include "support/sampling.h"
#include "support/tiny_model.h"
#include "text/utf8.h"

namespace tinyllama::testing {
namespace {

constexpr int64_t kVocab = 300;

// A vocabulary with byte pieces, words, and characters of two and three bytes.
Vocab tiny_vocab() {
  Vocab vocab = byte_vocab();
  const std::vector<std::string> words = {"\u2581", "e",  "\u2581the", "ab", "é",
                                          "日本",   "\n", "\u2581a",   "b",  "aé"};
  while (std::ssize(vocab.pieces) < kVocab) {
    const size_t i = vocab.pieces.size() - 259;
    std::string word = words[i % words.size()];
    for (size_t k = 0; k < i / words.size(); k++) word += "x";
    vocab.pieces.push_back({word, -static_cast<float>(i), PieceType::normal});
  }
  return vocab;
}

// A tiny random model on a backend, and a tokenizer for it.
struct World {
  explicit World(const std::string& backend_name = "", DType dtype = DType::f32,
                 TinyShape shape = {.vocab = kVocab}, RopeScaling scaling = {})
      : backend(make_backend(backend_name.empty() ? cpu_isas().front() : backend_name)),
        config(tiny_config(shape)),
        checkpoint((config.rope_scaling = scaling, random_model(config, 7)), dtype),
        model(*backend, *checkpoint),
        tokenizer(tiny_vocab()) {}

  std::unique_ptr<Backend> backend;
  Config config;
  MemoryCheckpoint checkpoint;
  Llama model;
  Tokenizer tokenizer;
};

World& world() {
  static World instance;
  return instance;
}

// What one sample must be: the model alone, token by token, with a cache of its own.
std::vector<Sampled> alone(const Llama& model, const Request& r, int sample, int64_t n,
                           DType kv_type, int64_t context = 0) {
  if (context == 0) context = model.config().context;
  const auto length = static_cast<int64_t>(r.prompt.size());
  const RopeFrequencies rope = rope_frequencies(model.config(), std::min(context, length + n));
  KvCache cache(model.backend(), model.config(), kv_type, KvCache::blocks_for(context));
  KvSequence sequence(cache);
  Sampler sampler(model.config().vocab_size);
  std::vector<TokenId> tokens = r.prompt;
  std::vector<Sampled> result;
  Logits logits = step(model, cache, sequence, r.prompt, &rope);
  for (;;) {
    result.push_back(sampler.sample(last_row(logits, model.config().vocab_size), r.sampling, tokens,
                                    {r.sampling.seed, static_cast<uint64_t>(sample), tokens.size()},
                                    r.n_logprobs));
    if (std::ssize(result) == n) return result;
    tokens.push_back(result.back().token);
    if (sequence.length() == context) {
      const int64_t discard = (sequence.length() - r.keep + 1) / 2;
      sequence.shift(r.keep, discard, rope.inv_freq);
    }
    logits = step(model, cache, sequence, {&tokens.back(), 1}, &rope);
  }
}

std::vector<TokenId> ids(const std::vector<Sampled>& sampled) {
  std::vector<TokenId> tokens;
  for (const Sampled& s : sampled) tokens.push_back(s.token);
  return tokens;
}

// Everything that came for one request.
struct Heard {
  std::vector<std::vector<Sampled>> tokens;  // by sample
  std::vector<std::string> text;
  std::vector<FinishReason> finish;
  std::string error;
  int events = 0;

  explicit Heard(int n = 1)
      : tokens(static_cast<size_t>(n)),
        text(static_cast<size_t>(n)),
        finish(static_cast<size_t>(n)) {}
  OnEvent listen() {
    return [this](const StreamEvent& e) {
      const auto i = static_cast<size_t>(e.sample);
      EXPECT_EQ(finish.at(i), FinishReason::none) << "an event after the closing one";
      EXPECT_EQ(e.token.has_value(), e.finish == FinishReason::none);
      if (e.token) tokens[i].push_back(*e.token);
      text[i] += e.text;
      finish[i] = e.finish;
      error += e.error;
      events++;
    };
  }
};

void run(Engine& engine) {
  for (int steps = 0; engine.busy(); steps++) {
    ASSERT_LT(steps, 10000);
    engine.step();
  }
}

Request request(int64_t length, uint64_t seed, int64_t max_tokens, double temperature = 0.9) {
  Request r;
  r.prompt = random_tokens(length, kVocab, seed);
  r.max_tokens = max_tokens;
  r.sampling.temperature = temperature;
  r.sampling.seed = seed;
  return r;
}

// Bits of log-probabilities, too: they are what the logits were.
void expect_same(const std::vector<Sampled>& got, const std::vector<Sampled>& want) {
  EXPECT_EQ(ids(got), ids(want));
  for (size_t i = 0; i < std::min(got.size(), want.size()); i++) {
    EXPECT_EQ(got[i].logprob, want[i].logprob) << i;
    ASSERT_EQ(got[i].top.size(), want[i].top.size());
    for (size_t k = 0; k < got[i].top.size(); k++)
      EXPECT_EQ(got[i].top[k].logprob, want[i].top[k].logprob);
  }
}

TEST(Engine, GreedyIsTheModelsArgmax) {
  World& w = world();
  Engine engine(w.model, &w.tokenizer);
  const Request r = request(20, 3, 40, 0);
  const std::vector<Completion> got = generate(engine, r);
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(got[0].tokens, greedy(w.model, w.model.default_kv_type(), r.prompt, 40));
  EXPECT_EQ(got[0].finish, FinishReason::length);
  EXPECT_EQ(got[0].text, w.tokenizer.decode(got[0].tokens, {.continues = true}));
  EXPECT_TRUE(got[0].sampled.empty());
  EXPECT_EQ(engine.stats().prompt_tokens, 20);
  EXPECT_EQ(engine.stats().generated_tokens, 40);
  EXPECT_EQ(engine.stats().steps, 40);
  EXPECT_GT(engine.stats().prompt_seconds, 0);
  EXPECT_GT(engine.stats().generate_seconds, 0);
}

TEST(Engine, SamplesShareThePromptAndNothingElse) {
  World& w = world();
  for (const int64_t length : {1, 63, 64, 65, 130}) {
    Engine engine(w.model, &w.tokenizer, {.rows_per_step = 40});
    Request r = request(length, 5, 30);
    r.n = 6;
    r.n_logprobs = 2;
    const std::vector<Completion> got = generate(engine, r);
    ASSERT_EQ(got.size(), 6u);
    EXPECT_EQ(engine.stats().prompt_tokens, length);  // computed once
    std::set<std::vector<TokenId>> different;
    for (int i = 0; i < 6; i++) {
      expect_same(got[static_cast<size_t>(i)].sampled,
                  alone(w.model, r, i, 30, w.model.default_kv_type()));
      different.insert(got[static_cast<size_t>(i)].tokens);
    }
    EXPECT_EQ(different.size(), 6u);
  }
}

// Twelve requests of all kinds, arriving while others run, against each one alone.
TEST(Engine, CompanyChangesNothing) {
  for (const std::string& name : backend_names()) {
    for (const DType dtype : {DType::f32, DType::q8_0}) {
      if (name == "naive" && dtype != DType::f32) continue;
      World w(name, dtype, {.hidden = 64, .intermediate = 96, .vocab = kVocab});
      const DType kv = dtype == DType::f32 ? DType::bf16 : DType::f16;
      std::vector<Request> requests;
      const std::vector<SamplerParams> list = chains();
      for (uint64_t i = 0; i < 12; i++) {
        Request r = request(static_cast<int64_t>(1 + 17 * i % 150), i,
                            static_cast<int64_t>(5 + 13 * i % 40));
        r.sampling = list[i];
        r.sampling.seed = i;
        r.n = i % 5 == 0 ? 3 : 1;
        r.n_logprobs = 1;
        requests.push_back(r);
      }
      for (const int64_t rows : {1, 7, 512}) {
        SCOPED_TRACE(name + ", " + std::string(traits(dtype).name) + ", rows " +
                     std::to_string(rows));
        Engine engine(
            w.model, &w.tokenizer,
            {.context = 0, .cache_positions = 2000, .rows_per_step = rows, .kv_type = kv});
        std::vector<Heard> heard;
        for (const Request& r : requests) heard.emplace_back(r.n);
        for (size_t i = 0; i < requests.size(); i++) {
          engine.submit(requests[i], heard[i].listen());
          for (size_t k = 0; k < 3 * i; k++) engine.step();
        }
        run(engine);
        for (size_t i = 0; i < requests.size(); i++)
          for (int s = 0; s < requests[i].n; s++)
            expect_same(heard[i].tokens[static_cast<size_t>(s)],
                        alone(w.model, requests[i], s, requests[i].max_tokens, kv));
        if (name == "naive") break;
      }
    }
  }
}

// A chat: each prompt goes on from the last answer, now and then from an earlier place. What is not
// computed again must not show.
TEST(Engine, ARetainedPrefixChangesNothing) {
  for (const std::string& name : backend_names()) {
    World w(name, DType::q8_0, {.hidden = 64, .intermediate = 96, .vocab = kVocab});
    Engine engine(w.model, nullptr, {.cache_positions = 8 * kKvBlock, .rows_per_step = 50});
    std::vector<TokenId> conversation = random_tokens(40, kVocab, 1);
    for (uint64_t turn = 0; turn < 8; turn++) {
      SCOPED_TRACE(name + ", turn " + std::to_string(turn));
      if (turn == 3) conversation.resize(70);
      if (turn == 5) conversation[0] ^= 1;
      Request r = request(1, turn, 12);
      r.prompt = conversation;
      r.n = turn % 2 == 1 ? 2 : 1;
      r.n_logprobs = 1;
      const int64_t before = engine.stats().reused_tokens, computed = engine.stats().prompt_tokens;
      const std::vector<Completion> got = generate(engine, r);
      const int64_t reused = engine.stats().reused_tokens - before;
      for (int i = 0; i < r.n; i++)
        expect_same(got[static_cast<size_t>(i)].sampled,
                    alone(w.model, r, i, 12, w.model.default_kv_type()));
      EXPECT_EQ(engine.stats().prompt_tokens - computed + reused, std::ssize(r.prompt));
      // All but the last token of the answer was computed, and then 8 new ones came.
      const int64_t length = std::ssize(r.prompt);
      EXPECT_EQ(reused, turn == 0 || turn == 5 ? 0 : turn == 3 ? 69 : length - 9);
      const std::vector<TokenId>& answer = got.back().tokens;
      conversation.insert(conversation.end(), answer.begin(), answer.end());
      for (uint64_t i = 0; i < 8; i++)
        conversation.push_back(static_cast<TokenId>(hash_key(turn, i) % kVocab));
    }
  }
}

// What is retained is not what dynamic RoPE makes of a longer request, and gives way to any
// request.
TEST(Engine, ARetainedPrefixMustFit) {
  RopeScaling dynamic;
  dynamic.kind = RopeScaling::Kind::dynamic;
  dynamic.factor = 2;
  World w("", DType::f32, {.vocab = kVocab, .context = 64}, dynamic);
  Engine engine(w.model, nullptr, {.context = 4 * kKvBlock, .cache_positions = 4 * kKvBlock});
  const std::vector<std::pair<int64_t, int64_t>> turns = {{10, 0},  {10, 39}, {100, 0},
                                                          {216, 0}, {10, 0},  {20, 39}};
  for (const auto& [max_tokens, reused] : turns) {
    Request r = request(40, 8, max_tokens);
    r.n_logprobs = 0;
    const int64_t before = engine.stats().reused_tokens;
    expect_same(generate(engine, r)[0].sampled,
                alone(w.model, r, 0, max_tokens, w.model.default_kv_type(), 4 * kKvBlock));
    EXPECT_EQ(engine.stats().reused_tokens - before, reused);
  }
}

TEST(Engine, StopTokensEndTheAnswerBeforeThem) {
  World& w = world();
  Engine engine(w.model, &w.tokenizer);
  Request r = request(10, 2, 50);
  const std::vector<TokenId> free = generate(engine, r)[0].tokens;
  r.stop_tokens = {free[7], free[20]};
  const Completion got = generate(engine, r)[0];
  const auto first =
      std::find_first_of(free.begin(), free.end(), r.stop_tokens.begin(), r.stop_tokens.end());
  EXPECT_EQ(got.tokens, std::vector<TokenId>(free.begin(), first));
  EXPECT_EQ(got.finish, FinishReason::stop);
  EXPECT_EQ(got.text, w.tokenizer.decode(got.tokens, {.continues = true}));
}

// Every substring of a free answer's text as the stop, among them such as begin or end inside a
// token and such as hold characters whose bytes came as several tokens.
TEST(Engine, StopStringsEndTheTextBeforeThem) {
  World& w = world();
  Engine engine(w.model, &w.tokenizer);
  Request r = request(10, 4, 40);
  for (const TokenId t : {0xC3, 0xA9, 0xA8})  // bytes of two-byte characters become common
    r.sampling.logit_bias.push_back({t + 3, 3.0f});
  const std::string free = generate(engine, r)[0].text;
  ASSERT_NE(free.find("é"), std::string::npos) << free;
  int stopped = 0;
  for (size_t begin = 0; begin < free.size(); begin += 2) {
    for (const size_t n : {1u, 3u, 4u, 9u}) {
      const std::string stop = free.substr(begin, n);
      if (valid_utf8_prefix(stop) != stop.size()) continue;
      r.stop = {"never in the text", stop};
      Heard heard;
      engine.submit(r, [&, listen = heard.listen()](const StreamEvent& e) {
        EXPECT_TRUE(is_valid_utf8(e.text));
        listen(e);
      });
      run(engine);
      EXPECT_EQ(heard.text[0], cut_at_stop(free, r.stop).first) << "stop '" << stop << "'";
      EXPECT_EQ(heard.finish[0], FinishReason::stop);
      stopped++;
    }
  }
  EXPECT_GT(stopped, 20);
  r.stop = {free.substr(free.size() - 4) + "?"};  // held back until the end, then shown
  const Completion got = generate(engine, r)[0];
  EXPECT_EQ(got.text, free);
  EXPECT_EQ(got.finish, FinishReason::length);
}

TEST(Engine, TextContinuesThePrompt) {
  World& w = world();
  Engine engine(w.model, &w.tokenizer);
  Request r = request(10, 4, 3, 0);
  r.sampling.logit_bias = {{*w.tokenizer.id_of("\u2581the"), 100.0f}};
  EXPECT_EQ(generate(engine, r)[0].text, " the the the");
}

TEST(Engine, AnUnfinishedCharacterIsShownAtTheEnd) {
  World& w = world();
  Engine engine(w.model, &w.tokenizer);
  Request r = request(10, 4, 1, 0);
  r.sampling.logit_bias = {{0xC3 + 3, 100.0f}};
  Completion got = generate(engine, r)[0];
  EXPECT_EQ(got.text, kReplacementUtf8);
  EXPECT_EQ(got.finish, FinishReason::length);
  r.stop = {std::string(kReplacementUtf8)};
  got = generate(engine, r)[0];
  EXPECT_EQ(got.text, "");
  EXPECT_EQ(got.finish, FinishReason::stop);
}

TEST(Engine, TheContextsEndIsALength) {
  World& w = world();
  Engine engine(w.model, nullptr);
  EXPECT_EQ(engine.context(), 256);
  Completion got = generate(engine, request(200, 1, -1))[0];
  EXPECT_EQ(got.tokens.size(), 56u);
  EXPECT_EQ(got.finish, FinishReason::length);
  EXPECT_EQ(got.text, "");
  got = generate(engine, request(256, 1, -1))[0];  // no room for any token
  EXPECT_TRUE(got.tokens.empty());
  EXPECT_EQ(got.finish, FinishReason::length);
  Request none = request(5, 1, 0);
  none.n = 3;
  for (const Completion& c : generate(engine, none)) EXPECT_EQ(c.finish, FinishReason::length);
}

TEST(Engine, ShiftGoesOnBeyondTheContext) {
  World& w = world();
  for (const int64_t keep : {0, 5, 70}) {
    Engine engine(w.model, nullptr, {.context = 100, .rows_per_step = 33});
    Request r = request(80, 6, 150);
    r.when_full = WhenFull::shift;
    r.keep = keep;
    r.n = 2;
    r.n_logprobs = 1;
    const std::vector<Completion> got = generate(engine, r);
    for (int i = 0; i < 2; i++)
      expect_same(got[static_cast<size_t>(i)].sampled,
                  alone(w.model, r, i, 150, w.model.default_kv_type(), 100));
    r.max_tokens = 10;  // the same prompt finds nothing of use in a shifted cache
    r.n = 1;
    expect_same(generate(engine, r)[0].sampled,
                alone(w.model, r, 0, 10, w.model.default_kv_type(), 100));
  }
  Engine engine(w.model, nullptr, {.context = 100});
  Request endless = request(100, 6, -1);
  endless.when_full = WhenFull::shift;
  int heard = 0;
  RequestId id = 0;
  id = engine.submit(endless, [&](const StreamEvent&) {
    if (++heard == 500) engine.cancel(id);
  });
  run(engine);
  EXPECT_EQ(heard, 501);  // and the closing event
}

TEST(Engine, RopeIsFixedByTheDeclaredLength) {
  RopeScaling dynamic;
  dynamic.kind = RopeScaling::Kind::dynamic;
  dynamic.factor = 2;
  World w("", DType::f32, {.vocab = kVocab, .context = 64}, dynamic);
  Engine engine(w.model, nullptr, {.context = 200});
  std::set<std::vector<TokenId>> different;
  for (const int64_t max_tokens : {20, 90, 150}) {
    Request r = request(40, 8, max_tokens);
    r.n_logprobs = 0;
    const Completion got = generate(engine, r)[0];
    expect_same(got.sampled, alone(w.model, r, 0, max_tokens, w.model.default_kv_type(), 200));
    different.insert({got.tokens.begin(), got.tokens.begin() + 20});
  }
  EXPECT_EQ(different.size(), 3u);
  Request shifting = request(40, 8, 20);
  shifting.when_full = WhenFull::shift;
  EXPECT_NE(error_of([&] { engine.submit(shifting, nullptr); }).find("dynamic"), std::string::npos);
}

TEST(Engine, RefusedRequestsLeaveItAsItWas) {
  World& w = world();
  Engine engine(w.model, nullptr, {.cache_positions = 128});
  const auto refused = [&](const std::string& part, auto change) {
    Request r = request(5, 1, 5);
    change(r);
    const std::string message = error_of([&] { engine.submit(r, nullptr); });
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_FALSE(engine.busy());
  };
  refused("prompt", [](Request& r) { r.prompt.clear(); });
  refused("[0, 300), got 300", [](Request& r) { r.prompt[2] = 300; });
  refused("got -1", [](Request& r) { r.prompt[0] = -1; });
  refused("at most 256", [](Request& r) { r.prompt.assign(257, 1); });
  refused("max_tokens", [](Request& r) { r.max_tokens = -2; });
  refused("n: want", [](Request& r) { r.n = 0; });
  refused("n: want", [](Request& r) { r.n = 100000; });
  refused("n_logprobs", [](Request& r) { r.n_logprobs = 301; });
  refused("temperature", [](Request& r) { r.sampling.temperature = -1; });
  refused("tokenizer", [](Request& r) { r.stop = {"x"}; });
  refused("keep", [](Request& r) { r.when_full = WhenFull::shift, r.keep = 6; });
  refused("128 positions", [](Request& r) { r.max_tokens = 130; });
  refused("128 positions", [](Request& r) { r.n = 3; });
  Engine with_text(w.model, &w.tokenizer);
  Request r = request(5, 1, 5);
  for (const char* bad : {"", "\xC3", "\x80"}) {
    r.stop = {bad};
    EXPECT_THROW(with_text.submit(r, nullptr), Error);
  }
  EXPECT_THROW(Engine(w.model, nullptr, {.context = 1}), Error);
  EXPECT_THROW(Engine(w.model, nullptr, {.cache_positions = -1}), Error);
  EXPECT_THROW(Engine(w.model, nullptr, {.rows_per_step = 0}), Error);
  EXPECT_THROW(Engine(w.model, nullptr, {.kv_type = DType::q4_0}), Error);
  EXPECT_EQ(generate(engine, request(5, 1, 5))[0].tokens.size(), 5u);
}

// Three requests that need half of the pool or all of it: they wait their turn, in order.
TEST(Engine, AFullCacheMakesRequestsWait) {
  World& w = world();
  Engine engine(w.model, nullptr, {.cache_positions = 128});
  std::vector<Heard> heard(5);
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 5; i++)
    requests.push_back(request(i == 2 ? 90 : 40, i, i == 2 ? 30 : 20));
  std::vector<size_t> closed;
  for (size_t i = 0; i < 5; i++)
    engine.submit(requests[i], [&, i, listen = heard[i].listen()](const StreamEvent& e) {
      if (e.finish != FinishReason::none) closed.push_back(i);
      listen(e);
    });
  run(engine);
  EXPECT_EQ(closed, (std::vector<size_t>{0, 1, 2, 3, 4}));
  for (size_t i = 0; i < 5; i++)
    EXPECT_EQ(ids(heard[i].tokens[0]), ids(alone(w.model, requests[i], 0, requests[i].max_tokens,
                                                 w.model.default_kv_type())));
}

// Two samples of which one ends early: what it had is enough for the next request.
TEST(Engine, ASampleThatEndsMakesRoom) {
  World& w = world();
  Engine engine(w.model, nullptr, {.cache_positions = 4 * kKvBlock});
  Request two = request(10, 1, 100);  // two blocks a sample
  two.n = 2;
  const std::vector<TokenId> first = ids(alone(w.model, two, 0, 5, w.model.default_kv_type()));
  two.stop_tokens = {first[4]};
  const auto second = ids(alone(w.model, two, 1, 100, w.model.default_kv_type()));
  ASSERT_EQ(std::count(second.begin(), second.begin() + 50, first[4]), 0) << "choose another seed";
  Heard heard(2), next;
  engine.submit(two, heard.listen());
  engine.submit(request(10, 2, 100), next.listen());
  for (int i = 0; i < 20; i++) engine.step();
  EXPECT_EQ(heard.finish[0], FinishReason::stop);
  EXPECT_EQ(heard.finish[1], FinishReason::none);
  EXPECT_GT(next.tokens[0].size(), 5u);
}

// More sequences than rows in a step: all get on at the same pace.
TEST(Engine, StepsAreSharedFairly) {
  World& w = world();
  Engine engine(w.model, nullptr, {.cache_positions = 1024, .rows_per_step = 3});
  std::vector<Heard> heard(7);
  for (size_t i = 0; i < 7; i++) engine.submit(request(1, i, 60), heard[i].listen());
  for (int i = 0; i < 70; i++) engine.step();
  for (const Heard& h : heard) EXPECT_EQ(h.tokens[0].size(), 30u);
}

TEST(Engine, ThePoolGrowsForARequestThatNeedsIt) {
  World& w = world();
  Engine engine(w.model, nullptr, {.context = 100});
  Request wide = request(70, 1, 30);
  wide.n = 20;
  Heard first, second(20);
  engine.submit(request(70, 2, 30), first.listen());
  engine.submit(wide, second.listen());
  run(engine);
  EXPECT_EQ(first.tokens[0].size(), 30u);
  for (int i = 0; i < 20; i++)
    EXPECT_EQ(ids(second.tokens[static_cast<size_t>(i)]),
              ids(alone(w.model, wide, i, 30, w.model.default_kv_type())));
}

TEST(Engine, CancelClosesOneRequestAndNoOther) {
  World& w = world();
  Engine engine(w.model, &w.tokenizer, {.cache_positions = 6 * kKvBlock});
  Heard kept, from_outside(3), from_inside, waiting;
  const Request r = request(20, 1, 40);
  Request three = request(20, 2, 40);
  three.n = 3;
  engine.submit(r, kept.listen());
  const RequestId outside = engine.submit(three, from_outside.listen());
  RequestId inside = 0;
  inside =
      engine.submit(request(20, 3, 40), [&, listen = from_inside.listen()](const StreamEvent& e) {
        listen(e);
        if (e.token && from_inside.events == 4) engine.cancel(inside);
      });
  for (int i = 0; i < 10; i++) engine.step();
  EXPECT_EQ(from_inside.events, 5);
  EXPECT_EQ(from_inside.finish[0], FinishReason::cancelled);
  const RequestId queued = engine.submit(request(200, 4, 40), waiting.listen());  // has no room
  engine.step();
  engine.cancel(queued);
  EXPECT_EQ(waiting.finish[0], FinishReason::cancelled);
  EXPECT_EQ(waiting.events, 1);
  EXPECT_EQ(from_outside.finish[0], FinishReason::none);
  engine.cancel(outside);
  for (const FinishReason reason : from_outside.finish) EXPECT_EQ(reason, FinishReason::cancelled);
  engine.cancel(queued);  // gone: nothing happens
  engine.cancel(12345);
  run(engine);
  EXPECT_EQ(ids(kept.tokens[0]), ids(alone(w.model, r, 0, 40, w.model.default_kv_type())));
  // All of the cache came back.
  EXPECT_EQ(generate(engine, request(200, 5, 56))[0].tokens.size(), 56u);
}

TEST(Engine, EventsMaySubmitAndCancel) {
  World& w = world();
  Engine engine(w.model, nullptr, {.cache_positions = 512});
  Heard first, victim, second;
  RequestId victim_id = 0;
  engine.submit(request(10, 1, 10), [&, listen = first.listen()](const StreamEvent& e) {
    listen(e);
    if (first.events == 3) engine.cancel(victim_id);
    if (first.events == 5) engine.submit(request(10, 3, 10), second.listen());
    EXPECT_THROW(engine.step(), std::logic_error);
  });
  victim_id = engine.submit(request(10, 2, 10), victim.listen());
  run(engine);
  EXPECT_EQ(first.tokens[0].size(), 10u);
  EXPECT_EQ(second.tokens[0].size(), 10u);
  EXPECT_EQ(victim.finish[0], FinishReason::cancelled);
  EXPECT_LT(victim.tokens[0].size(), 4u);
}

// The samples of a cancelled request fall silent at once, also in the step that runs.
TEST(Engine, ACancelledRequestHearsOnlyItsEnd) {
  World& w = world();
  Engine engine(w.model, nullptr);
  Request r = request(10, 1, 20);
  r.n = 4;
  int tokens = 0, ends = 0;
  RequestId id = 0;
  id = engine.submit(r, [&](const StreamEvent& e) {
    (e.token ? tokens : ends)++;
    if (tokens == 6) engine.cancel(id);
  });
  run(engine);
  EXPECT_EQ(tokens, 6);
  EXPECT_EQ(ends, 4);
  r.max_tokens = 0;
  id = engine.submit(r, [&](const StreamEvent& e) {
    EXPECT_EQ(e.finish, FinishReason::length);
    ends++;
    engine.cancel(id);
  });
  run(engine);
  EXPECT_EQ(ends, 8);
}

TEST(Engine, ACallbackThatThrowsEndsItsRequestOnly) {
  World& w = world();
  Engine engine(w.model, nullptr, {.cache_positions = 512});
  Heard before, after;
  int bad_events = 0;
  const Request r = request(10, 1, 20), s = request(15, 2, 20);
  engine.submit(r, before.listen());
  Request bad = request(10, 3, 20);
  bad.n = 3;
  engine.submit(bad, [&](const StreamEvent&) {
    if (++bad_events == 4) throw std::runtime_error("the client is gone");
  });
  engine.submit(s, after.listen());
  int thrown = 0;
  for (int steps = 0; engine.busy() && steps < 1000; steps++) {
    try {
      engine.step();
    } catch (const std::runtime_error& e) {
      EXPECT_STREQ(e.what(), "the client is gone");
      thrown++;
    }
  }
  EXPECT_EQ(thrown, 1);
  EXPECT_EQ(bad_events, 4);
  EXPECT_EQ(ids(before.tokens[0]), ids(alone(w.model, r, 0, 20, w.model.default_kv_type())));
  EXPECT_EQ(ids(after.tokens[0]), ids(alone(w.model, s, 0, 20, w.model.default_kv_type())));
}

// A damaged embedding poisons the logits of those who use it, and of nobody else.
TEST(Engine, AFailingSequenceFailsAlone) {
  const Config config = tiny_config({.vocab = kVocab});
  reference::Model damaged = random_model(config, 7);
  for (int64_t i = 0; i < config.hidden; i++)
    damaged.tensors["model.embed_tokens.weight"][static_cast<size_t>(7 * config.hidden + i)] = kNan;
  const auto backend = make_backend(cpu_isas().front());
  const MemoryCheckpoint checkpoint(damaged, DType::f32);
  const Llama model(*backend, *checkpoint);
  Engine engine(model, nullptr, {.cache_positions = 512});
  Request good = request(30, 1, 20), bad = request(30, 2, 20);
  for (Request* r : {&good, &bad}) {
    r->sampling.logit_bias = {{7, -kInfinity}};
    std::replace(r->prompt.begin(), r->prompt.end(), 7, 8);
  }
  bad.prompt[10] = 7;
  bad.n = 2;
  Heard good_heard, bad_heard(2), late_heard;
  engine.submit(bad, bad_heard.listen());
  engine.submit(good, good_heard.listen());
  const std::string message = error_of([&] { run(engine); });
  EXPECT_NE(message.find("finite logits"), std::string::npos) << message;
  EXPECT_EQ(bad_heard.error, message + message);
  for (const FinishReason reason : bad_heard.finish) EXPECT_EQ(reason, FinishReason::cancelled);
  engine.submit(good, late_heard.listen());
  run(engine);
  EXPECT_EQ(ids(good_heard.tokens[0]), ids(alone(model, good, 0, 20, model.default_kv_type())));
  EXPECT_EQ(ids(late_heard.tokens[0]), ids(good_heard.tokens[0]));
  EXPECT_THROW(generate(engine, bad), Error);
  EXPECT_FALSE(engine.busy());
}

TEST(Engine, LogprobsComeWhenAsked) {
  World& w = world();
  Engine engine(w.model, nullptr);
  Request r = request(12, 9, 8);
  r.n_logprobs = 3;
  const Completion got = generate(engine, r)[0];
  std::vector<TokenId> tokens = r.prompt;
  tokens.insert(tokens.end(), got.tokens.begin(), got.tokens.end());
  const Logits logits = all_logits(w.model, w.model.default_kv_type(), tokens);
  ASSERT_EQ(got.sampled.size(), 8u);
  for (size_t i = 0; i < 8; i++) {
    const auto row = std::span(logits).subspan((11 + i) * kVocab, kVocab);
    EXPECT_EQ(got.sampled[i].token, got.tokens[i]);
    EXPECT_NEAR(got.sampled[i].logprob,
                static_cast<double>(row[static_cast<size_t>(got.tokens[i])]) - log_sum_exp(row),
                1e-6);
    ASSERT_EQ(got.sampled[i].top.size(), 3u);
    EXPECT_EQ(static_cast<size_t>(got.sampled[i].top[0].token), argmax(row));
  }
}

// ---- Perplexity

TEST(Perplexity, MatchesTheLogits) {
  World& w = world();
  const std::vector<TokenId> text = random_tokens(500, kVocab, 3);
  for (const TokenId bos : {kNoToken, TokenId{1}}) {
    for (const int64_t window : {2, 50, 200, 256, 499, 600}) {
      double want = 0;
      int64_t targets = 0;
      const size_t step = static_cast<size_t>(window) - (bos == kNoToken ? 0 : 1);
      for (size_t first = 0; first < text.size(); first += step) {
        std::vector<TokenId> tokens;
        if (bos != kNoToken) tokens.push_back(bos);
        for (size_t i = first; i < std::min(text.size(), first + step); i++)
          tokens.push_back(text[i]);
        if (tokens.size() < 2) continue;
        const Logits logits = all_logits(w.model, DType::f32, tokens);
        for (size_t i = 0; i + 1 < tokens.size(); i++, targets++) {
          const auto row = std::span(logits).subspan(i * kVocab, kVocab);
          want += log_sum_exp(row) - static_cast<double>(row[static_cast<size_t>(tokens[i + 1])]);
        }
      }
      int calls = 0;
      const PerplexityResult got = perplexity(w.model, text, window, bos, {DType::f32, {}},
                                              [&](const PerplexityResult&) { calls++; });
      EXPECT_EQ(got.negative_log_likelihood, want) << window;  // the same sum in the same order
      EXPECT_EQ(got.targets, targets);
      EXPECT_EQ(got.perplexity(), std::exp(want / static_cast<double>(targets)));
      EXPECT_EQ(calls,
                static_cast<int>((text.size() - (bos == kNoToken ? 1 : 0) + step - 1) / step));
    }
  }
}

TEST(Perplexity, ComparesCaches) {
  World& w = world();
  const std::vector<TokenId> text = random_tokens(300, kVocab, 4);
  const PerplexityResult plain = perplexity(w.model, text, 200, 1, {DType::q8_0, {}});
  const PerplexityResult same = perplexity(w.model, text, 200, 1, {DType::f32, DType::f32});
  EXPECT_EQ(same.kl_sum, 0);
  EXPECT_EQ(same.same_top, same.targets);
  const PerplexityResult got = perplexity(w.model, text, 200, 1, {DType::q8_0, DType::f32});
  EXPECT_EQ(got.negative_log_likelihood,
            plain.negative_log_likelihood);  // the other changes nothing
  EXPECT_GT(got.kl_sum, 0);
  EXPECT_GE(got.kl_max * static_cast<double>(got.targets), got.kl_sum);
  EXPECT_LT(got.kl_max, 0.01);
  // The sum by hand, over the first window.
  const std::vector<TokenId> window = [&] {
    std::vector<TokenId> ids = {1};
    ids.insert(ids.end(), text.begin(), text.begin() + 199);
    return ids;
  }();
  const Logits p = all_logits(w.model, DType::f32, window),
               q = all_logits(w.model, DType::q8_0, window);
  double want = 0;
  for (size_t row = 0; row + 1 < window.size(); row++) {
    const auto at = [&](const Logits& logits) {
      return std::span(logits).subspan(row * kVocab, kVocab);
    };
    const double p_sum = log_sum_exp(at(p)), q_sum = log_sum_exp(at(q));
    for (size_t i = 0; i < kVocab; i++) {
      const double log_p = static_cast<double>(at(p)[i]) - p_sum;
      want += std::exp(log_p) * (log_p - (static_cast<double>(at(q)[i]) - q_sum));
    }
  }
  const PerplexityResult first =
      perplexity(w.model, std::span(text).first(199), 200, 1, {DType::q8_0, DType::f32});
  EXPECT_NEAR(first.kl_sum, want, 1e-12);
}

TEST(Perplexity, RefusesWhatCannotBeScored) {
  World& w = world();
  const auto refused = [&](std::vector<TokenId> tokens, int64_t window, TokenId bos) {
    EXPECT_THROW(perplexity(w.model, tokens, window, bos, {DType::f32, {}}), Error);
  };
  refused({}, 0, 1);
  refused({5}, 0, kNoToken);
  refused({5, 300}, 0, kNoToken);
  refused({5, -1}, 0, kNoToken);
  refused({5, 6}, 1, kNoToken);
  refused({5, 6}, 0, 300);
  EXPECT_EQ(perplexity(w.model, std::vector<TokenId>{5}, 0, 1, {DType::f32, {}}).targets, 1);
}

}  // namespace
}  // namespace tinyllama::testing
