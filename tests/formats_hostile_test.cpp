// formats/ against files that are cut short, damaged or made to harm: every one ends in an Error
// that names the fault, or in a model whose every byte can be read; none makes the reader allocate
// more than a small multiple of the file's size. fuzz/ goes on where this ends.
#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>

#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/checkpoint.h"
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "formats/hf_config.h"
#include "formats/hf_tokenizer.h"
#include "formats/llama2c.h"
#include "formats/safetensors.h"
#include "formats/sentencepiece_model.h"
#include "support/assets.h"
#include "support/fixtures.h"

namespace {

std::atomic<size_t> live_bytes{0}, peak_bytes{0};

}  // namespace

// Counts what the readers allocate. Not inlined: GCC would warn that free() meets another operator
// new.
[[gnu::noinline]] void* operator new(size_t size, const std::nothrow_t&) noexcept {
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) return nullptr;
  const size_t live = live_bytes += malloc_usable_size(memory);
  size_t peak = peak_bytes;
  while (live > peak && !peak_bytes.compare_exchange_weak(peak, live)) {
  }
  return memory;
}
[[gnu::noinline]] void* operator new(size_t size) {
  void* memory = operator new(size, std::nothrow);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  if (memory != nullptr) live_bytes -= malloc_usable_size(memory);
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  operator delete(memory);
}

namespace tinyllama {
namespace {

using namespace testing;
using Bytes = std::vector<std::byte>;
using Reader = std::function<void(std::span<const std::byte>)>;

std::atomic<uint64_t> sink{0};

void touch(const Checkpoint& checkpoint) {
  for (const auto& [name, tensor] : checkpoint.tensors) {
    uint64_t sum = 0;
    for (const std::byte byte : bytes_of(tensor)) sum += static_cast<uint64_t>(byte);
    sink += sum;
  }
}

void read_gguf(std::span<const std::byte> bytes) {
  touch(checkpoint_of_gguf(parse_gguf(bytes, "evil.gguf")));
}
void read_safetensors(std::span<const std::byte> bytes) {
  const Safetensors file = parse_safetensors(bytes, "evil.safetensors");
  for (const auto& [name, entry] : file.entries) {
    for (const std::byte byte : entry.data) sink += static_cast<uint64_t>(byte);
  }
}
void read_llama2c(std::span<const std::byte> bytes) {
  Checkpoint checkpoint = parse_llama2c(bytes, "evil.bin");
  check_checkpoint(checkpoint);
  touch(checkpoint);
}
void read_tok(std::span<const std::byte> bytes) {
  parse_llama2c_vocab(bytes, "tok.bin");
}
void read_sentencepiece(std::span<const std::byte> bytes) {
  parse_sentencepiece(bytes, "t.model");
}
void read_tokenizer_json(std::span<const std::byte> bytes) {
  parse_tokenizer_json(as_text(bytes), "tokenizer.json");
}
void read_config(std::span<const std::byte> bytes) {
  parse_hf_config(as_text(bytes), "config.json");
}

// Whether `reader` takes the bytes; anything but an Error escapes and fails the test.
bool takes(const Reader& reader, std::span<const std::byte> bytes) {
  const size_t before = live_bytes;
  peak_bytes = before;
  bool taken = true;
  try {
    reader(bytes);
  } catch (const Error&) {
    taken = false;
  }
  // The constant covers messages and empty containers; JSON costs some 50 bytes a character at
  // worst.
  EXPECT_LE(peak_bytes - before, 100 * bytes.size() + 100'000);
  return taken;
}

void expect_error(const Reader& reader, const Bytes& bytes, const std::string& want) {
  const size_t before = live_bytes;
  peak_bytes = before;
  try {
    reader(bytes);
    ADD_FAILURE() << "taken, though: " << want;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(want), std::string::npos) << error.what();
    EXPECT_EQ(error.what()[0], '[') << error.what();
  }
  EXPECT_LE(peak_bytes - before, 100 * bytes.size() + 100'000) << want;
}

Bytes bytes_from(const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

// A whole model in about 4 KB: one layer, twenty pieces.
Checkpoint small_model(const TinyCheckpoint& made) {
  Checkpoint small = *made;
  Vocab vocab;
  vocab.pieces = {{"<unk>", 0, PieceType::unknown},
                  {"<s>", 0, PieceType::control},
                  {"</s>", 0, PieceType::control},
                  {"<0x41>", 0, PieceType::byte}};
  for (int i = 4; i < 20; i++)
    vocab.pieces.push_back(
        {std::string(1, static_cast<char>('a' + i)), -static_cast<float>(i), PieceType::normal});
  vocab.unk = 0, vocab.bos = 1, vocab.eos = 2;
  small.vocab = vocab;
  return small;
}

Config small_config() {
  Config config;
  config.vocab_size = 20;
  config.hidden = 8, config.intermediate = 8;
  config.n_layers = 1, config.n_heads = 2, config.n_kv_heads = 1, config.head_dim = 4;
  config.context = 16;
  config.rope_scaling.kind = RopeScaling::Kind::llama3;
  config.rope_scaling.factor = 8;
  config.rope_scaling.original_context = 8;
  return config;
}

class SmallFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    const Checkpoint model = small_model(made);
    write_gguf(model, folder / "m.gguf", [](const TensorSpec&) { return DType::f16; }, pool, {});
    write_hf_folder(model, folder / "hf", DType::f32, pool, {});
  }
  Bytes gguf() const { return read_bytes(folder / "m.gguf"); }
  Bytes hf(const std::string& name) const { return read_bytes(folder / ("hf/" + name)); }
  // The same model as llama2.c's file.
  Bytes llama2c() const {
    const Config& c = made->config;
    const int32_t header[7] = {8, 8, 1, 2, 1, -20, 16};
    Bytes bytes(reinterpret_cast<const std::byte*>(header),
                reinterpret_cast<const std::byte*>(header + 7));
    bytes.resize(28 + static_cast<size_t>(c.parameters()) * 4 + 16 * 4 * 4);
    return bytes;
  }
  Bytes tok() const {
    std::string text("\x08\0\0\0", 4);
    const Vocab vocab = *small_model(made).vocab;
    for (const Piece& piece : vocab.pieces) {
      const auto length = static_cast<uint32_t>(piece.text.size());
      text.append(reinterpret_cast<const char*>(&piece.score), 4);
      text.append(reinterpret_cast<const char*>(&length), 4);
      text += piece.text;
    }
    return bytes_from(text);
  }

  TinyCheckpoint made{small_config()};
  TemporaryFolder folder;
  ThreadPool pool{1};
};

// ---- cut short, and one bit at a time ----

void cut_everywhere(const Reader& reader, const Bytes& bytes, size_t spare = 0) {
  ASSERT_TRUE(takes(reader, bytes));
  for (size_t n = 0; n + spare < bytes.size(); n++)
    ASSERT_FALSE(takes(reader, std::span(bytes).first(n)))
        << "of " << bytes.size() << " bytes only " << n;
}

void flip_everywhere(const Reader& reader, Bytes bytes, size_t n) {
  ASSERT_TRUE(takes(reader, bytes));
  size_t taken = 0;
  for (size_t bit = 0; bit < 8 * n; bit++) {
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    taken += takes(reader, bytes) ? 1 : 0;
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
  EXPECT_LT(taken, 8 * n) << "no flipped bit was noticed";
}

TEST_F(SmallFiles, GgufCutAndFlipped) {
  const Bytes bytes = gguf();
  const size_t padding = 32;  // behind the last tensor
  cut_everywhere(read_gguf, bytes, padding);
  size_t header = 0;  // up to the first tensor's data
  for (const auto& [name, tensor] : parse_gguf(bytes, "m").tensors) {
    const auto at = static_cast<size_t>(tensor.data.data() - bytes.data());
    header = header == 0 ? at : std::min(header, at);
  }
  flip_everywhere(read_gguf, bytes, header);
}

TEST_F(SmallFiles, SafetensorsCutAndFlipped) {
  const Bytes bytes = hf("model.safetensors");
  cut_everywhere(read_safetensors, bytes);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  flip_everywhere(read_safetensors, bytes, 8 + length);
}

TEST_F(SmallFiles, Llama2cCutAndFlipped) {
  cut_everywhere(read_llama2c, llama2c());
  flip_everywhere(read_llama2c, llama2c(), 28);
  const Bytes pieces = tok();
  ASSERT_TRUE(takes(read_tok, pieces));
  for (size_t n = 0; n < pieces.size(); n++)
    takes(read_tok, std::span(pieces).first(n));  // may end between pieces
  flip_everywhere(read_tok, pieces, pieces.size());
}

TEST_F(SmallFiles, TokenizersCutAndFlipped) {
  const Bytes model = hf("tokenizer.model"), json = hf("tokenizer.json");
  for (size_t n = 0; n < model.size(); n++) takes(read_sentencepiece, std::span(model).first(n));
  flip_everywhere(read_sentencepiece, model, model.size());
  cut_everywhere(read_tokenizer_json, json, 1);  // without the last line feed it is whole
  flip_everywhere(read_tokenizer_json, json, json.size());
  cut_everywhere(read_config, hf("config.json"), 1);
  flip_everywhere(read_config, hf("config.json"), hf("config.json").size());
}

// ---- GGUF ----

template <class T>
void put(Bytes& bytes, T value) {
  const auto* at = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), at, at + sizeof value);
}
void put_text(Bytes& bytes, const std::string& text) {
  put(bytes, static_cast<uint64_t>(text.size()));
  const Bytes more = bytes_from(text);
  bytes.insert(bytes.end(), more.begin(), more.end());
}

Bytes gguf_start(uint32_t version, uint64_t tensors, uint64_t pairs) {
  Bytes bytes = bytes_from("GGUF");
  put(bytes, version), put(bytes, tensors), put(bytes, pairs);
  return bytes;
}

// One key of the given type, whatever the bytes of its value.
Bytes gguf_pair(const std::string& key, uint32_t type, const std::function<void(Bytes&)>& value) {
  Bytes bytes = gguf_start(3, 0, 1);
  put_text(bytes, key);
  put(bytes, type);
  value(bytes);
  return bytes;
}

Bytes gguf_tensor(const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset, size_t data) {
  Bytes bytes = gguf_start(3, 1, 0);
  put_text(bytes, "token_embd.weight");
  put(bytes, static_cast<uint32_t>(dims.size()));
  for (const uint64_t dim : dims) put(bytes, dim);
  put(bytes, type), put(bytes, offset);
  bytes.resize((bytes.size() + 31) / 32 * 32 + data);
  return bytes;
}

TEST(EvilGguf, Counts) {
  for (const uint32_t version : {0u, 4u, 0x03000000u})
    expect_error(read_gguf, gguf_start(version, 0, 0), "version 1 to 3");
  expect_error(read_gguf, gguf_start(0x03000000u, 0, 0), "big-endian");
  for (const uint64_t count :
       {uint64_t{1} << 20, uint64_t{1} << 32, uint64_t{1} << 63, UINT64_MAX}) {
    expect_error(read_gguf, gguf_start(3, count, 0), "do not fit");
    expect_error(read_gguf, gguf_start(3, 0, count), "do not fit");
  }
  expect_error(read_gguf, bytes_from("GGML"), "not a GGUF file");
  expect_error(read_gguf, {}, "truncated");
}

TEST(EvilGguf, StringsAndArrays) {
  Bytes key = gguf_start(3, 0, 1);
  put(key, UINT64_MAX), put(key, uint64_t{0});
  expect_error(read_gguf, key, "at most 65535");
  for (const uint64_t length : {uint64_t{100}, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7}) {
    expect_error(read_gguf, gguf_pair("k", 8, [&](Bytes& b) { put(b, length); }), "truncated");
    for (const uint32_t element : {0u, 5u, 8u, 9u, 10u})
      expect_error(read_gguf, gguf_pair("k", 9, [&](Bytes& b) { put(b, element), put(b, length); }),
                   "does not fit");
  }
  expect_error(read_gguf, gguf_pair("k", 13, [](Bytes& b) { put(b, uint64_t{0}); }), "0 to 12");
  expect_error(read_gguf,
               gguf_pair("k", 9, [](Bytes& b) { put(b, uint32_t{77}), put(b, uint64_t{1}); }),
               "0 to 12");
  expect_error(read_gguf,
               gguf_pair("k", 9,
                         [](Bytes& b) {  // arrays in arrays in arrays ...
                           for (int i = 0; i < 10000; i++) put(b, uint32_t{9}), put(b, uint64_t{1});
                           put(b, uint32_t{0}), put(b, uint64_t{0});
                         }),
               "nested deeper");
}

TEST(EvilGguf, Alignment) {
  for (const uint32_t alignment : {0u, 1u, 3u, 12u, 33u, 1u << 21, 0x80000000u, UINT32_MAX})
    expect_error(read_gguf, gguf_pair("general.alignment", 4, [&](Bytes& b) { put(b, alignment); }),
                 "power of two");
  expect_error(read_gguf,
               gguf_pair("general.alignment", 10, [](Bytes& b) { put(b, uint64_t{1} << 63); }),
               "an integer");
  expect_error(read_gguf, gguf_pair("general.alignment", 8, [](Bytes& b) { put_text(b, "32"); }),
               "an integer");
}

TEST(EvilGguf, Tensors) {
  const uint64_t huge = uint64_t{1} << 40;
  expect_error(read_gguf, gguf_tensor({}, 0, 0, 64), "1 to 4 dimensions");
  expect_error(read_gguf, gguf_tensor({1, 1, 1, 1, 1}, 0, 0, 64), "1 to 4 dimensions");
  expect_error(read_gguf, gguf_tensor({4, 0}, 0, 0, 64), "dimensions of");
  expect_error(read_gguf, gguf_tensor({4, huge * 2}, 0, 0, 64), "dimensions of");
  expect_error(read_gguf, gguf_tensor({huge, huge}, 0, 0, 64), "overflows");
  expect_error(read_gguf, gguf_tensor({huge, 1 << 22, 4}, 0, 0, 64), "overflows");
  expect_error(read_gguf, gguf_tensor({huge, huge, huge, huge}, 0, 0, 64), "overflows");
  expect_error(read_gguf, gguf_tensor({17, 1}, 0, 0, 64), "truncated");
  expect_error(read_gguf, gguf_tensor({33, 1}, 2, 0, 64), "multiple of 32");
  expect_error(read_gguf, gguf_tensor({16, 1}, 0, 3, 64), "multiple of 32");
  for (const uint64_t offset : {uint64_t{32}, uint64_t{64}, uint64_t{1} << 63, UINT64_MAX - 31})
    expect_error(read_gguf, gguf_tensor({16, 1}, 0, offset, 64), "truncated");
}

TEST_F(SmallFiles, GgufWithTwoOfAKind) {
  GgufHeader header;
  header.add("a", uint32_t{1});
  header.add("a", uint32_t{1});
  expect_error(read_gguf, bytes_from(header.finish()), "appears twice");
  GgufHeader tensors;
  for (int i = 0; i < 2; i++) tensors.add_tensor("x", DType::f32, {8});
  expect_error(read_gguf, bytes_from(tensors.finish() + std::string(64, '\0')), "appears twice");
  Bytes overlap = gguf_start(3, 2, 0);
  for (const char* name : {"x", "y"}) {
    put_text(overlap, name);
    put(overlap, uint32_t{1}), put(overlap, uint64_t{16}), put(overlap, uint32_t{0}),
        put(overlap, uint64_t{0});
  }
  overlap.resize(512);
  expect_error(read_gguf, overlap, "overlaps");
}

// A GGUF file of one key after another, and token_embd so that it counts as a model.
Bytes gguf_model(const std::function<void(GgufHeader&)>& keys, uint32_t embedding = 8,
                 uint32_t heads = 2, uint32_t layers = 1, uint32_t context = 16) {
  GgufHeader header;
  header.add("general.architecture", "llama");
  header.add("llama.embedding_length", embedding);
  header.add("llama.feed_forward_length", uint32_t{8});
  header.add("llama.block_count", layers);
  header.add("llama.attention.head_count", heads);
  header.add("llama.context_length", context);
  keys(header);
  header.add_tensor("token_embd.weight", DType::f32, {8, 4});
  return bytes_from(header.finish() + std::string(128, '\0'));
}

TEST(EvilGguf, Hyperparameters) {
  const auto nothing = [](GgufHeader&) {};
  expect_error(read_gguf, gguf_model(nothing),
               "there is no such tensor");  // it parses; layers are missing
  expect_error(read_gguf, gguf_model(nothing, 8, 0), "does not divide");
  expect_error(read_gguf, gguf_model(nothing, 8, 3), "does not divide");
  expect_error(read_gguf, gguf_model(nothing, 0, 2), "hidden_size");
  expect_error(read_gguf, gguf_model(nothing, 8, 2, 0), "num_hidden_layers");
  expect_error(read_gguf, gguf_model(nothing, 8, 2, UINT32_MAX), "num_hidden_layers");
  expect_error(read_gguf, gguf_model(nothing, 8, 2, 1, 0), "max_position_embeddings");
  expect_error(read_gguf, gguf_model(nothing, UINT32_MAX, 1), "[config]");
  const auto with = [](const char* key, auto value) {
    return gguf_model([=](GgufHeader& h) { h.add(key, value); });
  };
  expect_error(read_gguf, with("llama.attention.head_count_kv", 0u), "num_key_value_heads");
  expect_error(read_gguf, with("llama.attention.key_length", 3u), "even");
  expect_error(read_gguf, with("llama.attention.key_length", UINT32_MAX), "head_dim");
  expect_error(read_gguf, with("llama.rope.dimension_count", 2u), "rope.dimension_count");
  expect_error(read_gguf, with("llama.expert_count", 8u), "experts");
  expect_error(read_gguf, with("llama.rope.freq_base", NAN), "not finite");
  expect_error(read_gguf, with("llama.rope.freq_base", 0.0f), "rope_theta");
  expect_error(read_gguf, with("llama.attention.layer_norm_rms_epsilon", INFINITY), "not finite");
  expect_error(read_gguf, with("llama.rope.scaling.type", "longrope"),
               "no such tensor");  // without a factor
  expect_error(read_gguf, with("tinyllama.rope_scaling", "[[["), "JSON");
  expect_error(read_gguf, with("tinyllama.rope_scaling", R"({"type":"linear","factor":-1})"),
               "factor");
  expect_error(read_gguf, with("general.sampling.temp", -1.0f), "general.sampling.temp");
}

TEST(EvilGguf, UnknownTypesAreNamedWithTheRemedy) {
  GgufHeader header;
  header.add("general.architecture", "llama");
  for (const char* key : {"embedding_length", "feed_forward_length", "context_length"})
    header.add(std::string("llama.") + key, uint32_t{8});
  header.add("llama.block_count", uint32_t{1});
  header.add("llama.attention.head_count", uint32_t{2});
  header.add_tensor("token_embd.weight", DType::q8_0, {32, 4});
  std::string text = header.finish() + std::string(512, '\0');
  const size_t type = text.rfind("token_embd.weight") + 17 + 4 + 16;
  text[type] = 13;
  expect_error(read_gguf, bytes_from(text), "token_embd.weight is Q5_K: want F32");
  text[type] = 99;
  expect_error(read_gguf, bytes_from(text), "type 99");
}

TEST(EvilGguf, Vocabularies) {
  const auto vocab = [](const std::vector<std::string_view>& tokens, std::vector<float> scores,
                        std::vector<int32_t> types, const char* extra = "", uint32_t id = 0) {
    GgufHeader header;
    header.add("tokenizer.ggml.model", "llama");
    header.add("tokenizer.ggml.tokens", tokens);
    header.add("tokenizer.ggml.scores", std::span<const float>(scores));
    header.add("tokenizer.ggml.token_type", std::span<const int32_t>(types));
    header.add("tokenizer.ggml.bos_token_id", uint32_t{0});
    header.add("tokenizer.ggml.eos_token_id", uint32_t{0});
    if (*extra != 0) header.add(extra, id);
    return bytes_from(header.finish());
  };
  const Reader read = [](std::span<const std::byte> bytes) {
    vocab_of_gguf(parse_gguf(bytes, "v.gguf"));
  };
  EXPECT_TRUE(takes(read, vocab({"a", "b"}, {0, 1}, {1, 1})));
  expect_error(read, vocab({}, {}, {}), "pieces");
  expect_error(read, vocab({"a", "b"}, {0}, {1, 1}), "scores");
  expect_error(read, vocab({"a", "b"}, {0, 1}, {1}), "types");
  expect_error(read, vocab({"a", "b"}, {0, NAN}, {1, 1}), "not finite");
  expect_error(read, vocab({"a", "b"}, {0, -INFINITY}, {1, 1}), "not finite");
  expect_error(read, vocab({"a", "b"}, {0, 1}, {1, 7}), "0 to 6");
  expect_error(read, vocab({"a", "b"}, {0, 1}, {1, -1}), "0 to 6");
  expect_error(read, vocab({"a", "a"}, {0, 1}, {1, 1}), "are both");
  expect_error(read, vocab({"a", "\xff"}, {0, 1}, {1, 1}), "UTF-8");
  expect_error(read, vocab({"a", "\xed\xa0\x80"}, {0, 1}, {1, 1}), "UTF-8");  // a surrogate
  const std::string longest(256, 'x');
  EXPECT_TRUE(takes(read, vocab({"a", longest}, {0, 1}, {1, 1})));
  const std::string too_long = longest + "x";  // cutting it everywhere would be quadratic
  expect_error(read, vocab({"a", too_long}, {0, 1}, {1, 1}), "at most 256");
  expect_error(read, vocab({"a", "<0x1>"}, {0, 1}, {1, 6}), "<0x41>");
  expect_error(read, vocab({"a", "b"}, {0, 1}, {1, 1}, "tokenizer.ggml.unknown_token_id", 2),
               "unk_token_id");
  expect_error(read, vocab({"a", "b"}, {0, 1}, {1, 1}, "tokenizer.ggml.eot_token_id", UINT32_MAX),
               "range");
}

// ---- safetensors ----

Bytes safetensors(const std::string& header, size_t data) {
  Bytes bytes;
  put(bytes, static_cast<uint64_t>(header.size()));
  const Bytes text = bytes_from(header);
  bytes.insert(bytes.end(), text.begin(), text.end());
  bytes.resize(bytes.size() + data);
  return bytes;
}

TEST(EvilSafetensors, Headers) {
  for (const uint64_t length :
       {uint64_t{3}, uint64_t{100'000'001}, uint64_t{1} << 63, UINT64_MAX}) {
    Bytes bytes;
    put(bytes, length);
    expect_error(read_safetensors, bytes, length <= 100'000'000 ? "truncated" : "at most");
  }
  expect_error(read_safetensors, safetensors("[]", 0), "want a JSON object");
  expect_error(read_safetensors, safetensors("{", 0), "not valid JSON");
  expect_error(read_safetensors, safetensors("{\"\xff\":1}", 0), "not valid JSON");
  expect_error(read_safetensors, safetensors(R"({"a":)" + std::string(100000, '[') + "}", 0),
               "nested deeper");
  expect_error(read_safetensors, safetensors(R"({"__metadata__":{"a":1}})", 0), "must be a string");
  expect_error(read_safetensors, safetensors(R"({"__metadata__":[]})", 0), "must be an object");
}

TEST(EvilSafetensors, Entries) {
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets, size_t data) {
    return safetensors(R"({"x":{"dtype":")" + dtype + R"(","shape":)" + shape +
                           R"(,"data_offsets":)" + offsets + "}}",
                       data);
  };
  EXPECT_TRUE(takes(read_safetensors, entry("F32", "[2,2]", "[0,16]", 16)));
  EXPECT_TRUE(takes(read_safetensors, entry("F32", "[0,9223372036854775807]", "[0,0]", 0)));
  expect_error(read_safetensors, entry("F32", "[2,2]", "[0,16]", 15), "[0, 16)");
  expect_error(read_safetensors, entry("F32", "[2,2]", "[0,16]", 17), "bytes of data");
  expect_error(read_safetensors, entry("F32", "[2,2]", "[4,20]", 20), "leave a gap");
  expect_error(read_safetensors, entry("F32", "[2,2]", "[16,0]", 16), "must lie in");
  expect_error(read_safetensors, entry("F32", "[2,2]", "[-16,0]", 16), "must lie in");
  expect_error(read_safetensors, entry("F32", "[2,2]", "[0,12]", 16), "want 16 bytes");
  expect_error(read_safetensors, entry("F32", "[2,2]", "[0,18446744073709551615]", 16),
               "out of range");
  expect_error(read_safetensors, entry("F32", "[2,2]", "[0,16,16]", 16), "two data_offsets");
  expect_error(read_safetensors, entry("F32", "[2,-2]", "[0,16]", 16), "negative");
  expect_error(read_safetensors, entry("F32", "[4294967296,4294967296]", "[0,0]", 0), "overflows");
  expect_error(read_safetensors, entry("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]", 4), "at most 8");
  expect_error(read_safetensors, entry("F32", "[2.0,2]", "[0,16]", 16), "must be an integer");
  expect_error(read_safetensors, entry("F33", "[2,2]", "[0,16]", 16), "unknown dtype");
  expect_error(read_safetensors, safetensors(R"({"x":1})", 0), "needs dtype");
  expect_error(
      read_safetensors,
      safetensors(
          R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
          3),
      "overlap");
  expect_error(
      read_safetensors,
      safetensors(
          R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          2),
      "twice");
}

// ---- llama2.c ----

TEST(EvilLlama2c, Headers) {
  const auto header = [](const std::vector<int32_t>& fields) {
    Bytes bytes;
    for (const int32_t field : fields) put(bytes, field);
    return bytes;
  };
  expect_error(read_llama2c, header({8, 8, 1, 0, 1, 20, 16}), "not a llama2.c model");
  expect_error(read_llama2c, header({-8, 8, 1, 2, 1, 20, 16}), "not a llama2.c model");
  expect_error(read_llama2c, header({8, 8, 1, 2, 1, INT32_MIN, 16}), "vocab_size");
  expect_error(read_llama2c, header({8, 8, INT32_MAX, 2, 1, 20, 16}), "num_hidden_layers");
  expect_error(read_llama2c, header({8, INT32_MAX, 1, 2, 1, 20, 16}), "intermediate_size");
  expect_error(read_llama2c, header({65536, 262144, 512, 64, 64, 1 << 20, 16}), "truncated");
  expect_error(read_llama2c, header({8, 8, 1, 2, 1, 20, INT32_MAX}), "max_position_embeddings");
  expect_error(read_llama2c, header({0x616b3432, 2, 8, 8, 1, 2, 1, 20, 16}), "version 0 or 1");
  expect_error(read_llama2c, header({0x616b3432, 1, 8, 8, 1, 2, 1, 20, 16}), "truncated");
  Bytes more = header({8, 8, 1, 2, 2, 20, 16});
  more.resize(28 + 4 * (20 * 8 + 4 * 64 + 3 * 64 + 3 * 8 + 16 * 4));
  EXPECT_TRUE(takes(read_llama2c, more));
  more.push_back({});
  expect_error(read_llama2c, more, "behind the last tensor");
}

TEST(EvilLlama2c, Vocabularies) {
  const auto piece = [](float score, int32_t length, const std::string& text) {
    Bytes bytes;
    put(bytes, uint32_t{4});
    for (int i = 0; i < 3; i++) {
      put(bytes, score), put(bytes, length);
      const Bytes more = bytes_from(text + std::to_string(i));
      bytes.insert(bytes.end(), more.begin(), more.end());
    }
    return bytes;
  };
  EXPECT_TRUE(takes(read_tok, piece(0, 2, "a")));
  expect_error(read_tok, piece(0, -1, "a"), "truncated");
  expect_error(read_tok, piece(0, INT32_MAX, "a"), "truncated");
  expect_error(read_tok, piece(NAN, 2, "a"), "not finite");
  expect_error(read_tok, piece(0, 2, "\xff"), "UTF-8");
  expect_error(read_tok, bytes_from(std::string(4, '\xff')), "not a llama2.c tokenizer");
}

// ---- SentencePiece ----

TEST(EvilSentencepiece, Messages) {
  const std::string piece(
      "\x0a\x08\x0a\x01"
      "a"
      "\x15\0\0\0\0",
      10);
  const std::string trainer("\x12\x08\x18\x02\xc0\x02\0\xc8\x02\0\x00", 10);  // BPE, unk 0, bos 0
  const std::string eos("\x12\x05\x18\x02\xd0\x02\0", 7);
  expect_error(read_sentencepiece, bytes_from(piece), "trainer_spec");
  expect_error(read_sentencepiece, bytes_from("\x12\x02\x18\x02"), "trainer_spec");
  expect_error(read_sentencepiece, bytes_from(piece + std::string("\x12\x02\x18\x01")), "BPE");
  expect_error(read_sentencepiece, bytes_from(piece + piece + trainer + eos), "are both");
  expect_error(read_sentencepiece, bytes_from(piece + std::string("\x12\x02\x18\x02")),
               "bos_token_id");
  expect_error(read_sentencepiece, bytes_from(std::string(11, '\xff')), "varint");
  expect_error(read_sentencepiece,
               bytes_from(std::string("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")),
               "truncated");
  expect_error(read_sentencepiece, bytes_from("\x0b"), "wire type");
  expect_error(read_sentencepiece, bytes_from("\x08\x01"), "wire type");
  expect_error(read_sentencepiece, bytes_from(std::string("\x0a\x02\x18\x07")), "1 to 6");
  expect_error(
      read_sentencepiece,
      bytes_from(std::string("\x12\x0c\x18\x02\xc0\x02\xff\xff\xff\xff\xff\xff\xff\x7f", 14)),
      "out of range");
  expect_error(read_sentencepiece, bytes_from(std::string("\x1a\x03\x12\x01x")), "identity");
}

// ---- JSON ----

TEST(EvilJson, Tokenizers) {
  const auto model = [](const std::string& vocab, const std::string& merges,
                        const std::string& more = "") {
    return bytes_from(R"({"model":{"type":"BPE","vocab":)" + vocab + R"(,"merges":)" + merges +
                      "}" + more + "}");
  };
  EXPECT_TRUE(takes(read_tokenizer_json, model(R"({"a":0,"b":1,"ab":2})", R"(["a b"])")));
  expect_error(read_tokenizer_json, model("{}", "[]"), "must map pieces");
  expect_error(read_tokenizer_json, model(R"({"a":-1})", "[]"), "must be in");
  expect_error(read_tokenizer_json, model(R"({"a":1000000000000})", "[]"), "must be in");
  expect_error(read_tokenizer_json, model(R"({"a":18446744073709551615})", "[]"), "out of range");
  expect_error(read_tokenizer_json, model(R"({"a":0,"b":0})", "[]"), "two pieces");
  expect_error(read_tokenizer_json, model(R"({"a":0,"a":1})", "[]"), "twice");
  expect_error(read_tokenizer_json, model(R"({"a":0})", R"(["a b"])"), "not in model.vocab");
  expect_error(read_tokenizer_json, model(R"({"a":0})", R"(["a a"])"), "not in model.vocab");
  expect_error(read_tokenizer_json, model(R"({"a":0})", R"(["a"])"), "two pieces");
  expect_error(read_tokenizer_json, model(R"({"a":0})", R"([1])"), "a merge must be a string");
  expect_error(read_tokenizer_json, model(R"({"a":0})", "{}"), "must be a list");
  expect_error(read_tokenizer_json,
               model(R"({"a":0})", "[]", R"(,"pre_tokenizer":{"type":"ByteLevel"})"), "ByteLevel");
  expect_error(read_tokenizer_json, model(R"({"a":0})", "[]", R"(,"normalizer":{"type":"NFKC"})"),
               "NFKC");
  expect_error(read_tokenizer_json,
               model(R"({"a":0})", "[]", R"(,"added_tokens":[{"id":5000,"content":"x"}])"),
               "far behind");
  expect_error(read_tokenizer_json,
               model(R"({"a":0})", "[]", R"(,"added_tokens":[{"id":0,"content":"x"}])"),
               "has \"a\" there");
  expect_error(read_tokenizer_json, bytes_from(R"({"model":{"type":"Unigram"}})"), "of type BPE");
  expect_error(read_tokenizer_json, bytes_from("{}"), "of type BPE");
}

TEST(EvilJson, ConfigsAndIndexes) {
  expect_error(read_config, bytes_from(std::string(1000, '{')), "JSON");
  expect_error(read_config,
               bytes_from(R"({"hidden_size":)" + std::string(70, '[') + std::string(70, ']') + "}"),
               "deeper");
  expect_error(read_config, bytes_from("{}"), "vocab_size");
  const Reader index = [](std::span<const std::byte> b) {
    parse_weight_index(as_text(b), "index.json");
  };
  for (const char* name : {"../x", "/etc/passwd", "a/b", "..", ".", ""})
    expect_error(index, bytes_from(std::string(R"({"weight_map":{"x":")") + name + "\"}}"),
                 "same folder");
  expect_error(index, bytes_from("{}"), "weight_map");
  const Reader generation = [](std::span<const std::byte> b) {
    parse_generation_config(as_text(b), "g.json");
  };
  expect_error(generation, bytes_from(R"({"temperature":-1})"), "temperature");
  expect_error(generation, bytes_from(R"({"top_k":1e30})"), "top_k");
  expect_error(generation, bytes_from(R"({"eos_token_id":"x"})"), "eos_token_id");
}

TEST_F(SmallFiles, TokenizerConfigs) {
  const auto apply = [](const std::string& text) {
    return [text](std::span<const std::byte>) {
      Vocab vocab = tiny_vocab();
      apply_tokenizer_config(vocab, text, "tokenizer_config.json");
    };
  };
  expect_error(apply(R"({"added_tokens_decoder":{"-1":{"content":"x"}}})"), {}, "has the id");
  expect_error(apply(R"({"added_tokens_decoder":{"99999999999999":{"content":"x"}}})"), {},
               "has the id");
  expect_error(apply(R"({"added_tokens_decoder":{"999999999":{"content":"x"}}})"), {},
               "far behind");
  expect_error(apply(R"({"added_tokens_decoder":{"0":{}}})"), {}, "no content");
  expect_error(apply(R"({"bos_token":7})"), {}, "bos_token");
  expect_error(apply(R"({"add_bos_token":"yes"})"), {}, "add_bos_token");
}

}  // namespace
}  // namespace tinyllama
