// Query and key rows are stored as Meta's checkpoints have them, pairs (2i, 2i + 1) rotated
// together, which is GGUF's order too.
#include "formats/llama2c.h"

#include <fmt/format.h>

#include <array>

#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/vocab_check.h"

namespace tinyllama {
namespace {

constexpr uint32_t kMagic = 0x616b3432;  // "ak42"
constexpr size_t kVersion1Header = 256;
constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

struct Header {
  Config config;
  bool version1 = false;
};

Header read_header(ByteReader& in) {
  Header header;
  ByteReader probe = in;
  header.version1 = probe.read<uint32_t>("header") == kMagic;
  if (header.version1) {
    in.read<uint32_t>("magic");
    const auto version = in.read<int32_t>("version");
    if (version != 1)
      fail(
          fmt::format("[load] {}: want llama2.c version 0 or 1 (FP32), got {}: convert from the "
                      "original model instead",
                      in.where(), version));
  }
  std::array<int32_t, 7> fields;
  for (int32_t& field : fields) field = in.read<int32_t>("header");
  const auto [hidden, intermediate, n_layers, n_heads, n_kv_heads, vocab_size, context] = fields;
  Config& config = header.config;
  config.hidden = hidden, config.intermediate = intermediate, config.n_layers = n_layers;
  config.n_heads = n_heads, config.n_kv_heads = n_kv_heads, config.context = context;
  config.vocab_size = vocab_size < 0 ? -int64_t{vocab_size} : vocab_size;
  config.tied_embeddings = vocab_size > 0;
  if (n_heads < 1 || hidden < 1 || hidden % n_heads != 0)
    fail(fmt::format("[load] {}: not a llama2.c model: width {} over {} heads", in.where(), hidden,
                     n_heads));
  config.head_dim = hidden / n_heads;
  if (header.version1) {
    config.tied_embeddings = in.read<uint8_t>("header") != 0;
    in.take(kVersion1Header - in.position(), "header");
  }
  validate(config, in.where());
  return header;
}

// Takes tensors off the file one after another and names them.
class Taker {
 public:
  Taker(ByteReader& in, Checkpoint& into) : in_(in), into_(into) {}

  void take(const std::string& name, int64_t rows, int64_t cols, int64_t interleaved_dim = 0) {
    const uint64_t bytes = static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols) * 4;
    const auto data = in_.take(bytes, name);
    into_.tensors[name] = {name, TensorView(data.data(), DType::f32, rows, cols), interleaved_dim};
  }
  // One tensor of every layer, as the format groups them.
  void take_layers(const std::string& suffix, int64_t rows, int64_t cols,
                   int64_t interleaved_dim = 0) {
    for (int64_t layer = 0; layer < into_.config.n_layers; layer++) {
      take(fmt::format("model.layers.{}.{}.weight", layer, suffix), rows, cols, interleaved_dim);
    }
  }

 private:
  ByteReader& in_;
  Checkpoint& into_;
};

void take_matrices(Taker& taker, const Config& c) {
  taker.take_layers("self_attn.q_proj", c.q_dim(), c.hidden, c.head_dim);
  taker.take_layers("self_attn.k_proj", c.kv_dim(), c.hidden, c.head_dim);
  taker.take_layers("self_attn.v_proj", c.kv_dim(), c.hidden);
  taker.take_layers("self_attn.o_proj", c.hidden, c.q_dim());
}
void take_mlp(Taker& taker, const Config& c) {
  taker.take_layers("mlp.gate_proj", c.intermediate, c.hidden);
  taker.take_layers("mlp.down_proj", c.hidden, c.intermediate);
  taker.take_layers("mlp.up_proj", c.intermediate, c.hidden);
}

void take_version0(Taker& taker, ByteReader& in, const Config& c) {
  taker.take("model.embed_tokens.weight", c.vocab_size, c.hidden);
  taker.take_layers("input_layernorm", 1, c.hidden);
  take_matrices(taker, c);
  taker.take_layers("post_attention_layernorm", 1, c.hidden);
  take_mlp(taker, c);
  taker.take("model.norm.weight", 1, c.hidden);
  // Rotation tables that no reader uses any more: cosines, then sines.
  in.take(static_cast<uint64_t>(c.context) * static_cast<uint64_t>(c.head_dim) * 4,
          "rotation tables");
}

void take_version1(Taker& taker, const Config& c) {
  taker.take_layers("input_layernorm", 1, c.hidden);
  taker.take_layers("post_attention_layernorm", 1, c.hidden);
  taker.take("model.norm.weight", 1, c.hidden);
  taker.take("model.embed_tokens.weight", c.vocab_size, c.hidden);
  take_matrices(taker, c);
  take_mlp(taker, c);
}

Piece read_piece(ByteReader& in, size_t id) {
  Piece piece;
  piece.score = in.read<float>("a score");
  const auto length = in.read<uint32_t>("a piece's length");
  std::string_view text = as_text(in.take(length, "a piece"));
  if (id == 0) piece.type = PieceType::unknown;
  if (id == 1 || id == 2) {  // written as "\n<s>\n"
    piece.type = PieceType::control;
    if (text.size() > 2 && text.front() == '\n' && text.back() == '\n')
      text = text.substr(1, text.size() - 2);
  }
  if (byte_of_piece(text) >= 0) piece.type = PieceType::byte;
  for (const char c : text) {
    if (c == ' ') {
      piece.text += kSpace;
    } else {
      piece.text += c;
    }
  }
  return piece;
}

}  // namespace

Checkpoint parse_llama2c(std::span<const std::byte> bytes, std::string_view where) {
  ByteReader in(bytes, where);
  const Header header = read_header(in);
  Checkpoint result;
  result.format = header.version1 ? "llama2.c v1" : "llama2.c";
  result.config = header.config;
  Taker taker(in, result);
  if (header.version1) {
    take_version1(taker, result.config);
  } else {
    take_version0(taker, in, result.config);
  }
  if (!result.config.tied_embeddings)
    taker.take("lm_head.weight", result.config.vocab_size, result.config.hidden);
  if (!in.done())
    fail(
        fmt::format("[load] {}: {} bytes behind the last tensor: not a llama2.c model, or of "
                    "another version",
                    where, in.left()));
  return result;
}

Vocab parse_llama2c_vocab(std::span<const std::byte> bytes, std::string_view where) {
  ByteReader in(bytes, where);
  const auto longest = in.read<uint32_t>("the longest piece's length");
  if (longest == 0 || longest > in.left())
    fail(fmt::format(
        "[load] {}: not a llama2.c tokenizer: longest piece of {} bytes in a file of {}", where,
        longest, bytes.size()));
  Vocab vocab;
  while (!in.done()) {
    if (vocab.pieces.size() >= kMaxPieces)
      fail(fmt::format("[load] {}: more than {} pieces", where, kMaxPieces));
    vocab.pieces.push_back(read_piece(in, vocab.pieces.size()));
  }
  if (vocab.pieces.size() < 3)
    fail(fmt::format("[load] {}: not a llama2.c tokenizer: {} pieces", where, vocab.pieces.size()));
  vocab.unk = 0, vocab.bos = 1, vocab.eos = 2;
  finish_vocab(vocab, where);
  return vocab;
}

}  // namespace tinyllama
