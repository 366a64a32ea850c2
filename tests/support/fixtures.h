// Models and vocabularies small enough to write, read and damage by the thousand.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "support/tiny_model.h"
#include "text/vocab.h"

namespace tinyllama::testing {

// 300 pieces in Llama's layout: <unk>, <s>, </s>, 256 bytes, words grown from letters, and an
// <|im_end|>.
Vocab tiny_vocab();

// A shape whose rows are whole blocks of every type but the K-quants.
Config tiny_format_config(bool tied = false);

// A model of random weights with tiny_vocab(), a chat template and generation defaults.
class TinyCheckpoint {
 public:
  explicit TinyCheckpoint(Config config, DType dtype = DType::f32, bool interleaved = false);
  const Checkpoint& operator*() const { return checkpoint_; }
  const Checkpoint* operator->() const { return &checkpoint_; }
  Checkpoint& get() { return checkpoint_; }

 private:
  MemoryCheckpoint memory_;
  Checkpoint checkpoint_;
};

inline DTypeChoice always(DType dtype) {
  return [dtype](const TensorSpec&) { return dtype; };
}

// The message of the Error that `action` throws.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::vector<std::byte> read_bytes(const std::string& path);
void write_bytes(const std::string& path, std::span<const std::byte> bytes);

// The tensor's bytes with rows in Hugging Face's order.
std::vector<std::byte> bytes_of(const NamedTensor& tensor);

// Every tensor of both, row by row in Hugging Face's order, and the configuration: equal bits.
void expect_same_model(const Checkpoint& a, const Checkpoint& b);
void expect_same_vocab(const Vocab& a, const Vocab& b, bool scores = true);

}  // namespace tinyllama::testing
