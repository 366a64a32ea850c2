// The hyperparameters of a Llama, plain data, as every model format spells them in its own way.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tinyllama {

// How positions are stretched beyond the trained context. Names and formulas follow Hugging Face's
// rope_scaling dictionary; a zero in an optional field means "absent".
struct RopeScaling {
  enum class Kind { none, linear, dynamic, yarn, llama3 };
  Kind kind = Kind::none;
  double factor = 1;
  int64_t original_context = 0;           // original_max_position_embeddings (yarn, llama3)
  double attention_factor = 0;            // yarn
  double mscale = 0, mscale_all_dim = 0;  // yarn
  double beta_fast = 32, beta_slow = 1;   // yarn
  bool truncate = true;                   // yarn
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3

  bool operator==(const RopeScaling&) const = default;
};

struct Config {
  int64_t vocab_size = 32000;
  int64_t hidden = 2048;
  int64_t intermediate = 5632;
  int64_t n_layers = 22;
  int64_t n_heads = 32;
  int64_t n_kv_heads = 4;
  int64_t head_dim = 64;
  int64_t context = 2048;  // max_position_embeddings
  double norm_eps = 1e-5;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tied_embeddings = false;

  int64_t kv_dim() const { return n_kv_heads * head_dim; }
  int64_t q_dim() const { return n_heads * head_dim; }
  // Number of parameters, embeddings and head included (a tied head counts once).
  int64_t parameters() const;

  bool operator==(const Config&) const = default;
};

// Throws Error naming the field, its value and its bound, when `config` is not a Llama this program
// can run: sizes in [1, limits that keep every product within 63 bits], n_heads a multiple of
// n_kv_heads, head_dim even. `where` starts the message ("config.json", "model.gguf").
void validate(const Config& config, std::string_view where);

// "tinyllama-1.1b", "tinyllama-120m", "llama-2-7b", "llama-2-13b", ... Throws Error listing the
// known ones.
Config preset(std::string_view name);
std::vector<std::string> preset_names();

}  // namespace tinyllama
