// Definitions of fixtures.h.
#include "support/fixtures.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string_view>

#include "support/byte_vocab.h"

namespace tinyllama::testing {
namespace {

// "_" stands for U+2581 and "e'" for an accented letter of two bytes.
constexpr const char* kWords[] = {"_", "t", "h", "e", "c", "a", "s", "o", "n", "d"};
constexpr const char* kMerges[] = {"_t",   "he", "_the", "at",   "cat", "_a", "_s",
                                   "_sat", "on", "and",  "_and", "se'", "e'"};

std::string piece_text(std::string_view word) {
  std::string text;
  for (size_t i = 0; i < word.size(); i++) {
    if (word[i] == '_') {
      text += "\xE2\x96\x81";
    } else if (word.substr(i, 2) == "e'") {
      text += "\xC3\xA9";
      i++;
    } else {
      text += word[i];
    }
  }
  return text;
}

Checkpoint with_texts(Checkpoint checkpoint) {
  checkpoint.name = "tiny";
  checkpoint.vocab = tiny_vocab();
  checkpoint.vocab->chat_template = "{{ messages[0]['content'] }} \"quoted\" \n\xE2\x96\x81";
  checkpoint.generation.temperature = 0.7;
  checkpoint.generation.top_k = 40;
  return checkpoint;
}

}  // namespace

Vocab tiny_vocab() {
  Vocab vocab = byte_vocab();
  float score = 0;
  for (const char* text : kMerges)
    vocab.pieces.push_back({piece_text(text), score--, PieceType::normal});
  for (const char* text : kWords)
    vocab.pieces.push_back({piece_text(text), score--, PieceType::normal});
  while (vocab.pieces.size() < 299)
    vocab.pieces.push_back({std::string(1, static_cast<char>('A' + (vocab.pieces.size() - 282))),
                            score--, PieceType::normal});
  vocab.pieces.push_back({"<|im_end|>", 0, PieceType::control});
  vocab.extra_eos = {299};
  return vocab;
}

Config tiny_format_config(bool tied) {
  Config config;
  config.vocab_size = 300;
  config.hidden = 64, config.intermediate = 96;
  config.n_layers = 2, config.n_heads = 4, config.n_kv_heads = 2, config.head_dim = 16;
  config.context = 128;
  config.tied_embeddings = tied;
  return config;
}

TinyCheckpoint::TinyCheckpoint(Config config, DType dtype, bool interleaved)
    : memory_(random_model(config, 7), dtype, interleaved), checkpoint_(with_texts(*memory_)) {}

std::vector<std::byte> read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

void write_bytes(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

std::vector<std::byte> bytes_of(const NamedTensor& tensor) {
  std::vector<std::byte> bytes;
  const size_t size = row_bytes(tensor.view.dtype, tensor.view.cols);
  for (int64_t r = 0; r < tensor.view.rows; r++)
    bytes.insert(bytes.end(), tensor.row(r), tensor.row(r) + size);
  return bytes;
}

void expect_same_model(const Checkpoint& a, const Checkpoint& b) {
  EXPECT_EQ(a.config, b.config);
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (const auto& [name, tensor] : a.tensors) {
    const NamedTensor* other = b.find(name);
    ASSERT_NE(other, nullptr) << name;
    EXPECT_EQ(tensor.view.dtype, other->view.dtype) << name;
    EXPECT_EQ(bytes_of(tensor), bytes_of(*other)) << name;
  }
}

void expect_same_vocab(const Vocab& a, const Vocab& b, bool scores) {
  ASSERT_EQ(a.pieces.size(), b.pieces.size());
  for (size_t id = 0; id < a.pieces.size(); id++) {
    EXPECT_EQ(a.pieces[id].text, b.pieces[id].text) << id;
    EXPECT_EQ(a.pieces[id].type, b.pieces[id].type) << id << " " << a.pieces[id].text;
    if (scores && a.pieces[id].type == PieceType::normal) {
      EXPECT_EQ(a.pieces[id].score, b.pieces[id].score) << id << " " << a.pieces[id].text;
    }
  }
  EXPECT_EQ(a.bos, b.bos);
  EXPECT_EQ(a.eos, b.eos);
  EXPECT_EQ(a.unk, b.unk);
  EXPECT_EQ(a.extra_eos, b.extra_eos);
  EXPECT_EQ(a.merges, b.merges);
  EXPECT_EQ(a.add_bos, b.add_bos);
  EXPECT_EQ(a.add_eos, b.add_eos);
  EXPECT_EQ(a.add_dummy_prefix, b.add_dummy_prefix);
  EXPECT_EQ(a.chat_template, b.chat_template);
}

}  // namespace tinyllama::testing
