// Writes the seed corpora: for each target a few small valid files, from which the fuzzer mutates.
// They are checked in under fuzz/corpus; run this again when a format gains something to start
// from.
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/parallel.h"
#include "data/shard.h"
#include "formats/checkpoint.h"
#include "formats/gguf.h"
#include "formats/gguf_model.h"
#include "formats/hf_config.h"
#include "formats/hf_tokenizer.h"
#include "formats/sentencepiece_model.h"
#include "support/parquet_writer.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

std::string root;

void put(const std::string& target, const std::string& name, std::string_view bytes) {
  std::filesystem::create_directories(root + "/" + target);
  std::ofstream(root + "/" + target + "/" + name, std::ios::binary) << bytes;
}

std::string contents(const std::string& path) {
  return read_text_file(path);
}

Vocab small_vocab() {
  Vocab vocab;
  vocab.pieces = {{"<unk>", 0, PieceType::unknown},     {"<s>", 0, PieceType::control},
                  {"</s>", 0, PieceType::control},      {"<0x41>", 0, PieceType::byte},
                  {"ab", 0, PieceType::normal},         {"a", -1, PieceType::normal},
                  {"b", -2, PieceType::normal},         {"\xE2\x96\x81", -3, PieceType::normal},
                  {"user", 0, PieceType::user_defined}, {"[PAD9]", 0, PieceType::unused}};
  vocab.unk = 0, vocab.bos = 1, vocab.eos = 2;
  vocab.chat_template = "{{ x }}";
  return vocab;
}

// 32 is one block of Q4_0 and Q8_0.
Config small_config(int64_t width) {
  Config config;
  config.vocab_size = 10;
  config.hidden = width, config.intermediate = width;
  config.n_layers = 1, config.n_heads = 2, config.n_kv_heads = 1, config.head_dim = 4;
  config.context = 16;
  config.tied_embeddings = true;
  return config;
}

// A model of ones and its GGUF file in `dtype`, at scratch/hf and scratch/m.gguf.
void make_model(const Config& config, bool vocab, DType dtype, const std::string& scratch) {
  Checkpoint from;
  from.config = config;
  from.name = "seed";
  if (vocab) from.vocab = small_vocab();
  ThreadPool pool(1);
  const FillRows ones = [](const TensorSpec& spec, int64_t, int64_t n, DType type, std::byte* to) {
    const std::vector<float> row(static_cast<size_t>(spec.cols), 1.0f);
    const size_t stride = row_bytes(type, spec.cols);
    for (int64_t r = 0; r < n; r++) {
      encode_row(type, row.data(), to + static_cast<size_t>(r) * stride, spec.cols);
    }
  };
  write_hf_folder(from, ones, scratch + "/hf", DType::bf16, {});
  const auto dtype_of = [dtype](const TensorSpec& spec) {
    return spec.cols % traits(dtype).block_size == 0 ? dtype : DType::f16;
  };
  write_gguf(open_checkpoint(scratch + "/hf"), scratch + "/m.gguf", dtype_of, pool, {});
}

void seed_models(const std::string& scratch) {
  for (const DType dtype : {DType::q4_0, DType::q8_0}) {
    make_model(small_config(32), true, dtype, scratch);
    put("gguf", std::string(traits(dtype).name), contents(scratch + "/m.gguf"));
  }
  Config scaled = small_config(8);
  scaled.rope_scaling = parse_rope_scaling(
      R"({"rope_type":"llama3","factor":8,"original_max_position_embeddings":8})", "seed");
  make_model(scaled, false, DType::bf16, scratch);
  put("gguf", "rope_factors", contents(scratch + "/m.gguf"));
  put("gguf", "version1", std::string("GGUF\1\0\0\0\0\0\0\0\1\0\0\0\1\0\0\0k\4\0\0\0\7\0\0\0", 29));
  put("safetensors", "model", contents(scratch + "/hf/model.safetensors"));
  put("safetensors", "scalar",
      std::string("\x3f\0\0\0\0\0\0\0", 8) +
          R"({"x":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}          )" +
          std::string(8, 'x'));
}

void seed_llama2c() {
  const auto model = [](bool version1) {
    const int32_t header[7] = {4, 4, 1, 2, 1, version1 ? 3 : -3, 2};
    std::string bytes = "m";
    if (version1) bytes += std::string("24ka\1\0\0\0", 8);
    bytes.append(reinterpret_cast<const char*>(header), sizeof header);
    if (version1) bytes += std::string(256 - 36, '\0');
    const size_t floats = 2 * 3 * 4 + 4 * (4 + 2 + 2 + 4) + 3 * 16 + 3 * 4 + (version1 ? 0 : 4);
    return bytes + std::string(floats * 4, '\0');
  };
  put("llama2c", "model0", model(false));
  put("llama2c", "model1", model(true));
  std::string pieces("t\6\0\0\0", 5);
  for (const char* text : {"<unk>", "\n<s>\n", "\n</s>\n", "<0x41>", "a b"}) {
    const auto length = static_cast<uint32_t>(std::strlen(text));
    pieces += std::string(4, '\0');
    pieces.append(reinterpret_cast<const char*>(&length), 4);
    pieces += text;
  }
  put("llama2c", "tok", pieces);
}

void seed_json() {
  const Vocab vocab = small_vocab();
  Config config = small_config(32);
  put("json", "tokenizer", "t" + make_tokenizer_json(vocab));
  Vocab first = vocab;
  first.prefix_after_special = false, first.add_eos = true;
  first.merges = {{5, 6}};
  put("json", "tokenizer_merges", "t" + make_tokenizer_json(first));
  put("json", "additions",
      R"(j{"pre_tokenizer":{"type":"Metaspace","prepend_scheme":"first"},"added_tokens":[{"id":4,"content":"x"}]})");
  put("json", "tokenizer_config", "k" + make_tokenizer_config(vocab, 16));
  put("json", "templates",
      R"(k{"chat_template":[{"name":"default","template":"x"}],"eos_token":{"content":"a"}})");
  put("json", "added_tokens", R"(a{"<|im_end|>":4})");
  put("json", "generation_config",
      R"(g{"eos_token_id":[1,2],"temperature":0.5,"top_k":5,"top_p":0.9,"repetition_penalty":1.1})");
  put("json", "index", R"(i{"metadata":{"total_size":1},"weight_map":{"x":"a.safetensors"}})");
  for (const char* scaling :
       {R"({"type":"linear","factor":2})", R"({"rope_type":"dynamic","factor":2.5})",
        R"({"rope_type":"yarn","factor":4,"mscale":1,"attention_factor":1,"truncate":false})",
        R"({"rope_type":"llama3","factor":8,"original_max_position_embeddings":64})"}) {
    config.rope_scaling = parse_rope_scaling(scaling, "seed");
    const std::string kind(1, static_cast<char>('0' + static_cast<int>(config.rope_scaling.kind)));
    put("json", "config" + kind, "c" + make_hf_config(config, &vocab, DType::bf16));
    put("json", "rope" + kind, std::string("r") + scaling);
  }
}

void seed_data(const std::string& scratch) {
  for (const int codec : {0, 1, 2, 6})
    for (const int bits : {0, 1, 3, 7, 11}) {
      testing::ParquetWriter writer(
          {codec, (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0});
      writer.group({"one", "two", "two", "one", "three"});
      put("parquet", std::to_string(codec) + "-" + std::to_string(bits), writer.finish());
    }
  const std::string lines = "{\"text\":\"a\\n\"}\n\n{\"content\":5}\n";
  put("rows", "text", "tone\n---\ntwo\n");
  put("rows", "lines", "l" + lines);
  put("rows", "gzip", "l" + testing::gzip(lines));
  put("rows", "zstd", "l" + testing::pack(6, lines));
  put("rows", "json", R"(j[{"text":"a]"}, {"meta":{"set":"x"},"text":null}, 5])");
  put("rows", "csv", "cid,text\n1,\"a\"\"\nb\"\n2,c\n");
  for (const uint32_t size : {300U, 70000U}) {
    ShardWriter writer({7, size, 2});
    for (const TokenId id : {3, 299}) writer.add(std::vector<TokenId>{id, 2});
    writer.write(scratch + "/a.tok");
    put("shard", std::to_string(size), contents(scratch + "/a.tok"));
  }
  put("shard", "lit", std::string("LITPKDS\1\0\0\0\0\0\0\0\x08\2\0\0\0\0\0\0\0\1\0\2\0", 28));
  std::string llmc(1024, '\0');
  const int32_t header[3] = {20240520, 1, 2};
  std::memcpy(llmc.data(), header, sizeof header);
  put("shard", "llmc", llmc + std::string("\1\0\2\0", 4));
}

}  // namespace
}  // namespace tinyllama

int main(int argc, char** argv) {
  using namespace tinyllama;
  if (argc != 2) {
    std::fprintf(stderr, "usage: fuzz_seeds FOLDER\n");
    return 2;
  }
  root = argv[1];
  try {
    const std::string scratch = root + "/scratch";
    std::filesystem::create_directories(scratch);
    seed_models(scratch);
    seed_data(scratch);
    std::filesystem::remove_all(scratch);
    seed_llama2c();
    seed_json();
    put("sentencepiece_model", "model", make_sentencepiece(small_vocab()));
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
