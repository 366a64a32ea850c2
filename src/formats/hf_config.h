// Hugging Face's JSON files that are not the tokenizer: config.json, generation_config.json and the
// index of sharded weights, in and out.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/config.h"
#include "tensor/tensor.h"
#include "text/vocab.h"

namespace tinyllama {

struct HfConfig {
  Config config;
  TokenId bos = kNoToken, pad = kNoToken;
  std::vector<TokenId> eos;
};

// Reads config.json. Throws Error, naming the field, for whatever is not a Llama that this program
// runs: another model_type, biases, another activation, quantization_config, unknown rope_scaling.
HfConfig parse_hf_config(std::string_view text, std::string_view where);
std::string make_hf_config(const Config& config, const Vocab* vocab, DType dtype);

// The rope_scaling dictionary alone ("null" for none), as config.json holds it.
RopeScaling parse_rope_scaling(std::string_view text, std::string_view where);
std::string make_rope_scaling(const RopeScaling& scaling);

struct GenerationConfig {
  GenerationDefaults defaults;
  std::vector<TokenId> eos;
};
GenerationConfig parse_generation_config(std::string_view text, std::string_view where);
std::string make_generation_config(const GenerationDefaults& defaults, const Vocab* vocab);

// model.safetensors.index.json: tensor name -> file name. File names with a folder in them are
// refused.
std::map<std::string, std::string> parse_weight_index(std::string_view text,
                                                      std::string_view where);
std::string make_weight_index(const std::map<std::string, std::string>& files,
                              uint64_t total_bytes);

}  // namespace tinyllama
