// A model as found on disk, whatever its format: hyperparameters, vocabulary and named tensors over
// mapped files. Names and row order are Hugging Face's; formats that differ are translated at this
// boundary, and all validation happens here, so nothing above checks a file again.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/parallel.h"
#include "formats/config.h"
#include "tensor/rotary.h"
#include "tensor/tensor.h"
#include "text/vocab.h"

namespace tinyllama {

struct NamedTensor {
  std::string name;             // "model.layers.3.self_attn.q_proj.weight"
  TensorView view;              // rows in file order
  int64_t interleaved_dim = 0;  // head_dim when rows are in GGUF's order, 0 when in HF's
  std::string file = {};        // name of the file it lies in, for messages

  // Row `r` in Hugging Face's order.
  const std::byte* row(int64_t r) const {
    return view.row(interleaved_dim == 0 ? r : interleaved_row(r, interleaved_dim));
  }
};

struct GenerationDefaults {  // generation_config.json; unset fields keep the program's defaults
  std::optional<double> temperature, top_p, repetition_penalty;
  std::optional<int> top_k;
};

struct Checkpoint {
  std::string path;
  std::string format;  // "Hugging Face folder", "GGUF v3", "llama2.c"
  std::string name;    // general.name, or the folder's or file's name
  Config config;
  std::optional<Vocab> vocab;
  GenerationDefaults generation;
  std::map<std::string, NamedTensor> tensors;
  std::vector<std::shared_ptr<const MappedFile>> files;
  std::vector<std::shared_ptr<const Buffer>> copies;  // of tensors that lay misaligned in a file
  std::vector<std::string> notes;  // what the user should know: tensors ignored, fields assumed

  const NamedTensor* find(const std::string& tensor_name) const;
  // Total bytes of all tensors as stored.
  uint64_t tensor_bytes() const;
};

// The tensors a Llama of this shape has, in the order they are written: name, rows, cols (a norm is
// one row). The head is absent when embeddings are tied.
struct TensorSpec {
  std::string name;
  int64_t rows, cols;
  bool is_norm;
  int64_t rotary_dim;  // head_dim for q_proj and k_proj, else 0
};
std::vector<TensorSpec> tensor_specs(const Config& config);

// Opens a Hugging Face folder, a .gguf file, a llama2.c .bin (its tokenizer beside it:
// tokenizer.model, tokenizer.bin or tok<vocab_size>.bin / .model), or a single .safetensors with
// config.json beside it. Checks that every tensor of tensor_specs() is present with its shape, and
// throws Error otherwise.
Checkpoint open_checkpoint(const std::string& path);

// The vocabulary alone, from any model or tokenizer file: tokenizer.model, tokenizer.json (with
// tokenizer_config.json beside it), tok*.bin, .gguf (vocab-only ones too), a Hugging Face folder.
Vocab open_vocab(const std::string& path);

// Checks the tensors of a Checkpoint against tensor_specs(): shapes, types, a head unless tied (a
// missing head makes it tied). Tensors that a Llama has no use for are removed with a note; biases
// are an Error, since leaving them out would change the answers. Readers end with it; a checkpoint
// made in memory should too.
void check_checkpoint(Checkpoint& checkpoint);

// Writers. `dtype_of` says in which type each tensor is stored (so that one code path converts and
// quantizes). Both are atomic, encode on `pool`, hold a few megabytes at a time and report progress
// in bytes written; `progress` may be empty. A Hugging Face folder holds f32, f16 or bf16, in
// shards of 5 GB; a GGUF file keeps norms in FP32 whatever `dtype_of` says, as llama.cpp wants.
using DTypeChoice = std::function<DType(const TensorSpec&)>;
void write_hf_folder(const Checkpoint& from, const std::string& path, DType dtype, ThreadPool& pool,
                     const Progress& progress);

// Fills rows [first, first + n) of a tensor, in Hugging Face's order, encoded as `dtype`, one
// behind the other at `to`: how weights that are made rather than read reach a file.
using FillRows = std::function<void(const TensorSpec& spec, int64_t first, int64_t n, DType dtype,
                                    std::byte* to)>;
// The same folder from made-up weights: of `from`, only config, vocabulary and generation defaults
// count.
void write_hf_folder(const Checkpoint& from, const FillRows& fill, const std::string& path,
                     DType dtype, const Progress& progress);

void write_gguf(const Checkpoint& from, const std::string& path, const DTypeChoice& dtype_of,
                ThreadPool& pool, const Progress& progress);

}  // namespace tinyllama
