// The engine's step: admit what fits, plan rows for whatever is behind, run them, and sample where
// the last token was among them. Callbacks run only where every structure is whole.
#include "infer/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <limits>
#include <utility>

#include "base/error.h"
#include "infer/sequence.h"
#include "text/utf8.h"

namespace tinyllama {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
constexpr int64_t kMaxContext = int64_t{1} << 30;
constexpr int kMaxSamples = 1024;
constexpr int64_t kMaxLogitRows = 256;  // of one step: 32 MB at 32,000 tokens

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <class T>
void check_range(std::string_view name, T value, T low, T high) {
  if (value < low || value > high)
    fail(fmt::format("[submit] {}: want {} to {}, got {}", name, low, high, value));
}

int64_t checked_context(const EngineOptions& options, const Config& config) {
  if (options.context == 0) return config.context;
  if (options.context < 2 || options.context > kMaxContext)
    fail(fmt::format("[engine] context: want 2 to {} positions, got {}", kMaxContext,
                     options.context));
  return options.context;
}

int64_t checked_rows(const EngineOptions& options) {
  if (options.rows_per_step < 1 || options.rows_per_step > kMaxContext)
    fail(fmt::format("[engine] rows_per_step: want 1 to {}, got {}", kMaxContext,
                     options.rows_per_step));
  return options.rows_per_step;
}

// Sets a flag for the length of a scope.
class Scoped {
 public:
  explicit Scoped(bool& flag) : flag_(flag) { flag_ = true; }
  ~Scoped() { flag_ = false; }
  Scoped(const Scoped&) = delete;
  Scoped& operator=(const Scoped&) = delete;

 private:
  bool& flag_;
};

}  // namespace

struct Engine::Impl {
  // The cache of the last sequence that ended; not counted in reserved_blocks.
  struct Retained {
    std::vector<TokenId> tokens;
    KvSequence kv;
    RopeFrequencies rope;
  };
  // One sequence's share of a step.
  struct Item {
    OpenRequest* open;
    Sequence* sequence;
    int64_t n_rows;
    bool wants_logits;  // its last token is among the rows
  };

  Impl(const Llama& llama, const Tokenizer* text, const EngineOptions& opts)
      : model(llama),
        tokenizer(text),
        options(opts),
        context(checked_context(opts, llama.config())),
        rows_per_step(checked_rows(opts)),
        kv_type(opts.kv_type.value_or(llama.default_kv_type())),
        sampler(llama.config().vocab_size),
        logits(static_cast<size_t>(llama.config().vocab_size)) {
    if (opts.cache_positions < 0 || opts.cache_positions > kMaxContext)
      fail(fmt::format("[engine] cache_positions: want 0 to {}, got {}", kMaxContext,
                       opts.cache_positions));
    const int64_t positions = opts.cache_positions == 0 ? context : opts.cache_positions;
    cache = make_cache(KvCache::blocks_for(positions));
  }

  void validate(const Request& request) const;
  void set_limits(OpenRequest& open) const;
  std::unique_ptr<KvCache> make_cache(int64_t n_blocks) const {
    return std::make_unique<KvCache>(model.backend(), model.config(), kv_type, n_blocks);
  }

  void step();
  void admit();
  bool has_room(const OpenRequest& open);
  int64_t reusable(const OpenRequest& open) const;
  void retain(const OpenRequest& open, Sequence& sequence);
  void start(OpenRequest& open);
  void plan();
  void plan_decodes();
  void plan_prompts();
  void add(OpenRequest& open, Sequence& sequence, int64_t n_rows);
  void make_room(OpenRequest& open, Sequence& sequence, int64_t n_rows) const;
  void run();
  void commit();
  void fork(OpenRequest& open);
  void sample(OpenRequest& open, Sequence& sequence);
  void accept(OpenRequest& open, Sequence& sequence, Sampled sampled);
  void finish(OpenRequest& open, Sequence& sequence, FinishReason reason);
  void emit(OpenRequest& open, const StreamEvent& event);
  void fail_request(OpenRequest& open, std::exception_ptr why);
  void reap();
  std::unique_ptr<OpenRequest> take_closed();
  void announce_end(OpenRequest& open);
  void rethrow() {
    if (error) std::rethrow_exception(std::exchange(error, nullptr));
  }

  const Llama& model;
  const Tokenizer* tokenizer;
  const EngineOptions options;
  const int64_t context, rows_per_step;
  const DType kv_type;

  std::unique_ptr<KvCache> cache;
  int64_t reserved_blocks = 0;  // promised to active requests
  std::optional<Retained> retained;
  std::unique_ptr<Activations> activations;
  Sampler sampler;
  std::vector<float> logits;  // (vocab) on the host

  RequestId last_id = 0;
  std::deque<std::unique_ptr<OpenRequest>> waiting;
  std::vector<std::unique_ptr<OpenRequest>> active;  // in order of admission
  size_t turn = 0;  // which decode comes first when a step cannot hold all

  bool in_step = false;      // callbacks may be running: lists must not change
  std::exception_ptr error;  // the first of this step
  Batch batch;
  std::vector<Item> items, decodes;
  int64_t prompt_rows = 0;  // of the planned step
  EngineStats stats;
};

// ---- Requests come

void Engine::Impl::validate(const Request& r) const {
  const int64_t vocab_size = model.config().vocab_size;
  const auto length = static_cast<int64_t>(r.prompt.size());
  if (length == 0) fail("[submit] prompt: want at least one token, got none");
  if (length > context)
    fail(fmt::format("[submit] prompt: want at most {} tokens (the context), got {}", context,
                     length));
  for (const TokenId token : r.prompt)
    if (token < 0 || token >= vocab_size)
      fail(fmt::format("[submit] prompt: want token ids in [0, {}), got {}", vocab_size, token));
  check_range("max_tokens", r.max_tokens, int64_t{-1}, kMaxContext);
  check_range("n", r.n, 1, kMaxSamples);
  check_range("n_logprobs", int64_t{r.n_logprobs}, int64_t{-1}, vocab_size);
  r.sampling.validate(vocab_size);
  if (!r.stop.empty() && tokenizer == nullptr)
    fail("[submit] stop: this model has no tokenizer, so only stop tokens can end an answer");
  for (const std::string& stop : r.stop)
    if (stop.empty() || !is_valid_utf8(stop))
      fail("[submit] stop: want strings of valid UTF-8 that are not empty");
  if (r.when_full != WhenFull::shift) return;
  check_range("keep", r.keep, int64_t{0}, std::min(length, context - 2));
  if (model.config().rope_scaling.kind == RopeScaling::Kind::dynamic)
    fail(
        "[submit] when_full: a context with dynamic RoPE scaling cannot shift; use WhenFull::stop");
}

// The most the request may generate, and what that takes of the cache.
void Engine::Impl::set_limits(OpenRequest& open) const {
  const Request& r = open.request;
  const bool shifts = r.when_full == WhenFull::shift;
  const int64_t room = shifts ? kNoLimit : context - open.prompt_length();
  open.max_new = r.max_tokens < 0 ? room : std::min(r.max_tokens, room);
  const int64_t positions =
      open.max_new > context - open.prompt_length() ? context : open.prompt_length() + open.max_new;
  open.rope = rope_frequencies(model.config(), positions);
  // Samples share the prompt's full blocks for good; a shift copies them.
  open.prompt_blocks = shifts && positions == context ? 0 : open.prompt_length() / kKvBlock;
  open.sample_blocks = KvCache::blocks_for(positions) - open.prompt_blocks;
}

// ---- A step

void Engine::Impl::step() {
  TL_CHECK(!in_step);  // step() from an event callback
  const auto begin = std::chrono::steady_clock::now();
  {
    const Scoped guard(in_step);
    admit();
    plan();
    if (!items.empty()) {
      run();
      commit();
      stats.steps++;
      (prompt_rows > 0 ? stats.prompt_seconds : stats.generate_seconds) += seconds_since(begin);
    }
    reap();
  }
  rethrow();
}

void Engine::Impl::admit() {
  while (!waiting.empty()) {
    OpenRequest& open = *waiting.front();
    try {
      if (!open.cancelled && open.max_new > 0) {
        if (!has_room(open)) return;
        start(open);
      }
    } catch (...) {  // no memory for a cache as large as this
      fail_request(open, std::current_exception());
    }
    active.push_back(std::move(waiting.front()));
    waiting.pop_front();
    if (open.cancelled || open.max_new > 0) continue;
    for (int i = 0; i < open.request.n; i++)
      emit(open, {.sample = i, .finish = FinishReason::length});
    open.silent = true;
  }
}

// Whether the pool can promise the request's worst case, besides what it promised before. What is
// retained goes when it is in the way; a pool whose size was left to the engine grows when nothing
// lives in it.
bool Engine::Impl::has_room(const OpenRequest& open) {
  const int64_t need = open.worst_case_blocks();
  if (reserved_blocks + need <= cache->n_blocks()) {
    if (retained && reusable(open) == 0 &&
        reserved_blocks + need + std::ssize(retained->kv.blocks()) > cache->n_blocks())
      retained.reset();
    return true;
  }
  if (reserved_blocks > 0) return false;
  TL_CHECK(options.cache_positions == 0);  // submit() refuses what never fits
  retained.reset();
  cache = make_cache(need);
  return true;
}

// How many of the prompt's tokens the retained sequence begins with; the last one is always
// computed again, for its logits.
int64_t Engine::Impl::reusable(const OpenRequest& open) const {
  if (!retained || retained->rope.inv_freq != open.rope.inv_freq ||
      retained->rope.scale != open.rope.scale)
    return 0;
  const auto& prompt = open.request.prompt;
  const auto differ = std::mismatch(prompt.begin(), prompt.end() - 1, retained->tokens.begin(),
                                    retained->tokens.end());
  return differ.first - prompt.begin();
}

// Keeps the cache of a sequence that ends, for a prompt that goes on from it. After a shift it is
// no longer a function of the tokens.
void Engine::Impl::retain(const OpenRequest& open, Sequence& sequence) {
  const int64_t length = sequence.kv.length();
  if (length > 0 && length == sequence.computed) {
    RopeFrequencies rope = open.rope;
    sequence.tokens.resize(static_cast<size_t>(length));
    retained.emplace(Retained{std::move(sequence.tokens), std::move(sequence.kv), std::move(rope)});
  }
  sequence.kv.clear();
}

void Engine::Impl::start(OpenRequest& open) {
  Sequence first{.kv = KvSequence(*cache), .stops = StopMatcher(open.request.stop)};
  first.tokens.reserve(static_cast<size_t>(open.prompt_length() + std::min(open.max_new, context)));
  first.tokens = open.request.prompt;
  if (const int64_t n_reused = reusable(open); n_reused > 0) {
    first.kv = std::move(retained->kv);
    first.kv.truncate(n_reused);
    first.computed = n_reused;
    stats.reused_tokens += n_reused;
    retained.reset();
  }
  if (tokenizer != nullptr) first.detokenizer.emplace(*tokenizer, DecodeOptions{.continues = true});
  open.sequences.reserve(static_cast<size_t>(open.request.n));
  open.sequences.push_back(std::move(first));
  open.reserved_blocks = open.worst_case_blocks();
  reserved_blocks += open.reserved_blocks;
}

// Chooses the rows of the next pass: first a row for every sequence that waits for its next token,
// then as much of the prompts as fits, in the order they came.
void Engine::Impl::plan() {
  batch.tokens.clear();
  batch.segments.clear();
  batch.logit_rows.clear();
  items.clear();
  prompt_rows = 0;
  plan_decodes();
  plan_prompts();
}

void Engine::Impl::plan_decodes() {
  decodes.clear();
  for (const auto& open : active) {
    if (open->cancelled) continue;
    for (Sequence& sequence : open->sequences)
      if (sequence.finish == FinishReason::none && sequence.pending() == 1)
        decodes.push_back({open.get(), &sequence, 1, true});
  }
  const size_t n =
      std::min(decodes.size(), static_cast<size_t>(std::min(rows_per_step, kMaxLogitRows)));
  if (n == decodes.size()) turn = 0;
  for (size_t i = 0; i < n; i++) {
    const Item& item = decodes[(turn + i) % decodes.size()];
    add(*item.open, *item.sequence, 1);
  }
  turn += n;
}

void Engine::Impl::plan_prompts() {
  for (const auto& open : active) {
    if (open->cancelled || open->sequences.empty()) continue;
    Sequence& sequence = open->sequences.front();
    if (sequence.finish != FinishReason::none || sequence.pending() <= 1) continue;
    const int64_t n = std::min(sequence.pending(), rows_per_step - batch.rows());
    if (n == 0 || std::ssize(batch.logit_rows) == kMaxLogitRows) return;
    add(*open, sequence, n);
  }
}

// Adds the sequence's next rows to the batch; a request that cannot get its memory fails alone.
void Engine::Impl::add(OpenRequest& open, Sequence& sequence, int64_t n_rows) {
  try {
    make_room(open, sequence, n_rows);
  } catch (...) {
    fail_request(open, std::current_exception());
    return;
  }
  const bool wants_logits = n_rows == sequence.pending();
  const auto from = sequence.tokens.begin() + sequence.computed;
  batch.segments.push_back({batch.rows(), n_rows, sequence.kv.length(), sequence.kv.blocks(),
                            open.rope.inv_freq, open.rope.scale});
  batch.tokens.insert(batch.tokens.end(), from, from + n_rows);
  if (wants_logits) batch.logit_rows.push_back(static_cast<int32_t>(batch.rows() - 1));
  items.push_back({&open, &sequence, n_rows, wants_logits});
  prompt_rows += std::clamp<int64_t>(open.prompt_length() - sequence.computed, 0, n_rows);
}

// Makes the cache ready for the rows. A full context gives up half of what it need not keep.
void Engine::Impl::make_room(OpenRequest& open, Sequence& sequence, int64_t n_rows) const {
  if (sequence.kv.length() + n_rows > context) {
    TL_CHECK(open.request.when_full == WhenFull::shift && n_rows == 1);
    const int64_t keep = open.request.keep;
    sequence.kv.shift(keep, (sequence.kv.length() - keep + 1) / 2, open.rope.inv_freq);
  }
  sequence.kv.reserve(n_rows);
}

void Engine::Impl::run() {
  const auto n_logits = std::max<int64_t>(1, std::ssize(batch.logit_rows));
  if (!activations || activations->max_logit_rows() < n_logits) {
    int64_t grown = 1;
    while (grown < n_logits) grown *= 2;
    activations.reset();
    activations =
        std::make_unique<Activations>(model.backend(), model.config(), rows_per_step, grown);
  }
  forward(model, batch, *cache, *activations);
}

// Takes the results of the pass. First all bookkeeping, then samples and their callbacks.
void Engine::Impl::commit() {
  stats.prompt_tokens += prompt_rows;
  for (const Item& item : items) {
    item.sequence->kv.advance(item.n_rows);
    item.sequence->computed += item.n_rows;
  }
  const Tensor all = activations->logits(std::ssize(batch.logit_rows));
  int64_t row = 0;
  for (const Item& item : items) {
    if (!item.wants_logits) continue;
    model.backend().copy_to_host(all.row(row++), reinterpret_cast<std::byte*>(logits.data()),
                                 logits.size() * sizeof(float));
    if (item.open->forked) {
      sample(*item.open, *item.sequence);
    } else {
      fork(*item.open);
      for (Sequence& sequence : item.open->sequences) sample(*item.open, sequence);
    }
  }
}

// The prompt is computed: the other samples share its cache, block by block, until they write.
void Engine::Impl::fork(OpenRequest& open) {
  open.forked = true;
  try {
    for (int i = 1; i < open.request.n; i++) {
      open.sequences.push_back(open.sequences.front());
      open.sequences.back().sample = i;
      open.sequences.back().tokens.reserve(open.sequences.front().tokens.capacity());
    }
  } catch (...) {
    fail_request(open, std::current_exception());
  }
}

// Draws the sequence's next token from `logits`. Whatever goes wrong ends this request alone.
void Engine::Impl::sample(OpenRequest& open, Sequence& sequence) {
  if (open.cancelled) return;
  const SamplerParams& params = open.request.sampling;
  const NoiseKey key{params.seed, static_cast<uint64_t>(sequence.sample), sequence.tokens.size()};
  try {
    accept(open, sequence,
           sampler.sample(logits, params, sequence.tokens, key, open.request.n_logprobs));
  } catch (...) {
    fail_request(open, std::current_exception());
  }
}

void Engine::Impl::accept(OpenRequest& open, Sequence& sequence, Sampled sampled) {
  const TokenId token = sampled.token;
  const auto& ends = open.request.stop_tokens;
  if (std::find(ends.begin(), ends.end(), token) != ends.end())
    return finish(open, sequence, FinishReason::stop);
  sequence.tokens.push_back(token);
  stats.generated_tokens++;
  StreamEvent event{.sample = sequence.sample, .token = std::move(sampled)};
  if (sequence.detokenizer) event.text = sequence.stops.push(sequence.detokenizer->push(token));
  emit(open, event);
  const auto n_new = static_cast<int64_t>(sequence.tokens.size()) - open.prompt_length();
  if (sequence.stops.matched()) {
    finish(open, sequence, FinishReason::stop);
  } else if (n_new >= open.max_new) {
    finish(open, sequence, FinishReason::length);
  }
}

// Ends one sample: frees its cache and sends what text was held back. Cancelled requests are left
// to reap().
void Engine::Impl::finish(OpenRequest& open, Sequence& sequence, FinishReason reason) {
  if (open.cancelled) return;
  StreamEvent event{.sample = sequence.sample, .finish = reason};
  if (sequence.detokenizer) {
    event.text = sequence.stops.push(sequence.detokenizer->flush());
    if (sequence.stops.matched()) event.finish = FinishReason::stop;
    event.text += sequence.stops.flush();
  }
  sequence.finish = event.finish;
  retain(open, sequence);
  open.reserved_blocks -= open.sample_blocks;
  reserved_blocks -= open.sample_blocks;
  emit(open, event);
}

void Engine::Impl::emit(OpenRequest& open, const StreamEvent& event) {
  if (open.silent || !open.on_event) return;
  try {
    open.on_event(event);
  } catch (...) {
    if (!error) error = std::current_exception();
    open.cancelled = open.silent = true;
  }
}

void Engine::Impl::fail_request(OpenRequest& open, std::exception_ptr why) {
  try {
    std::rethrow_exception(why);
  } catch (const std::exception& e) {
    open.error = e.what();
  } catch (...) {
    open.error = "unknown error";
  }
  if (!error) error = std::move(why);
  open.cancelled = true;
}

// ---- Requests go

// Removes every request that is cancelled or has finished, one at a time, since a callback may
// cancel others.
void Engine::Impl::reap() {
  while (const std::unique_ptr<OpenRequest> open = take_closed()) {
    reserved_blocks -= open->reserved_blocks;
    for (Sequence& sequence : open->sequences) retain(*open, sequence);
    if (open->cancelled) announce_end(*open);
  }
}

std::unique_ptr<OpenRequest> Engine::Impl::take_closed() {
  const auto closed = [](const std::unique_ptr<OpenRequest>& open) {
    const auto done = [](const Sequence& s) { return s.finish != FinishReason::none; };
    return open->cancelled || open->max_new == 0 ||
           (open->forked && std::all_of(open->sequences.begin(), open->sequences.end(), done));
  };
  const auto take = [&](auto& list) -> std::unique_ptr<OpenRequest> {
    const auto at = std::find_if(list.begin(), list.end(), closed);
    if (at == list.end()) return nullptr;
    std::unique_ptr<OpenRequest> open = std::move(*at);
    list.erase(at);
    return open;
  };
  if (auto open = take(active)) return open;
  // What has no token to get and waits is still to be announced by admit().
  const auto at = std::find_if(waiting.begin(), waiting.end(),
                               [](const auto& open) { return open->cancelled; });
  if (at == waiting.end()) return nullptr;
  std::unique_ptr<OpenRequest> open = std::move(*at);
  waiting.erase(at);
  return open;
}

void Engine::Impl::announce_end(OpenRequest& open) {
  for (int i = 0; i < open.request.n; i++) {
    const auto index = static_cast<size_t>(i);
    if (index < open.sequences.size() && open.sequences[index].finish != FinishReason::none)
      continue;
    emit(open, {.sample = i, .finish = FinishReason::cancelled, .error = open.error});
  }
}

// ---- The public face

Engine::Engine(const Llama& model, const Tokenizer* tokenizer, const EngineOptions& options)
    : impl_(std::make_unique<Impl>(model, tokenizer, options)) {}
Engine::~Engine() = default;

RequestId Engine::submit(Request request, OnEvent on_event) {
  impl_->validate(request);
  auto open = std::make_unique<OpenRequest>();
  open->request = std::move(request);
  open->on_event = std::move(on_event);
  impl_->set_limits(*open);
  const int64_t most = impl_->cache->n_blocks();
  if (impl_->options.cache_positions > 0 && open->worst_case_blocks() > most)
    fail(
        fmt::format("[submit] want at most {} positions of cache, but the request may need {}; "
                    "lower max_tokens or n, or give the engine a larger cache",
                    most * kKvBlock, open->worst_case_blocks() * kKvBlock));
  open->id = ++impl_->last_id;
  impl_->waiting.push_back(std::move(open));
  return impl_->last_id;
}

void Engine::cancel(RequestId id) {
  const auto mark = [&](auto& list) {
    for (auto& open : list)
      if (open->id == id) open->cancelled = true;
  };
  mark(impl_->waiting);
  mark(impl_->active);
  if (impl_->in_step) return;
  {
    const Scoped guard(impl_->in_step);
    impl_->reap();
  }
  impl_->rethrow();
}

bool Engine::busy() const {
  return !impl_->waiting.empty() || !impl_->active.empty();
}
void Engine::step() {
  impl_->step();
}
const EngineStats& Engine::stats() const {
  return impl_->stats;
}
int64_t Engine::context() const {
  return impl_->context;
}

std::vector<Completion> generate(Engine& engine, const Request& request) {
  std::vector<Completion> completions;
  int open = request.n;
  const RequestId id = engine.submit(request, [&](const StreamEvent& event) {
    Completion& completion = completions[static_cast<size_t>(event.sample)];
    completion.text += event.text;
    completion.finish = event.finish;
    if (event.finish != FinishReason::none) open--;
    if (!event.token) return;
    completion.tokens.push_back(event.token->token);
    if (request.n_logprobs >= 0) completion.sampled.push_back(*event.token);
  });
  completions.resize(static_cast<size_t>(request.n));
  try {
    while (open > 0) engine.step();
  } catch (...) {
    engine.cancel(id);
    throw;
  }
  return completions;
}

}  // namespace tinyllama
