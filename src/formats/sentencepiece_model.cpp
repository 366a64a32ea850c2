// Field numbers follow sentencepiece_model.proto (ModelProto, TrainerSpec, NormalizerSpec); unknown
// fields are skipped, as protobuf asks.
#include "formats/sentencepiece_model.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <functional>

#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/vocab_check.h"

namespace tinyllama {
namespace {

constexpr uint64_t kBpe = 2;  // TrainerSpec.ModelType

// One field of a message: a varint (or fixed) value, or the bytes of a string or message.
struct Field {
  uint64_t number = 0;
  uint64_t wire = 0;
  uint64_t value = 0;
  std::span<const std::byte> bytes;
};

uint64_t read_varint(ByteReader& in) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = in.read<uint8_t>("a varint");
    value |= uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) return value;
  }
  fail(fmt::format("[load] {}: varint longer than 10 bytes at offset {}", in.where(),
                   in.position()));
}

Field read_field(ByteReader& in) {
  const uint64_t key = read_varint(in);
  Field field{key >> 3, key & 7, 0, {}};
  switch (field.wire) {
    case 0:
      field.value = read_varint(in);
      break;
    case 1:
      field.value = in.read<uint64_t>("a 64-bit field");
      break;
    case 2:
      field.bytes = in.take(read_varint(in), "a field");
      break;
    case 5:
      field.value = in.read<uint32_t>("a 32-bit field");
      break;
    default:
      fail(fmt::format("[load] {}: not a SentencePiece model: wire type {} at offset {}",
                       in.where(), field.wire, in.position()));
  }
  if (field.number == 0)
    fail(fmt::format("[load] {}: not a SentencePiece model: field number 0", in.where()));
  return field;
}

void for_fields(std::span<const std::byte> message, std::string_view where,
                const std::function<void(const Field&)>& visit) {
  ByteReader in(message, where);
  while (!in.done()) visit(read_field(in));
}

void want_wire(const Field& field, uint64_t wire, std::string_view where) {
  if (field.wire != wire)
    fail(fmt::format("[load] {}: not a SentencePiece model: field {} has wire type {}, want {}",
                     where, field.number, field.wire, wire));
}

Piece read_piece(std::span<const std::byte> message, std::string_view where) {
  Piece piece;
  for_fields(message, where, [&](const Field& field) {
    if (field.number == 1) {
      want_wire(field, 2, where);
      piece.text = as_text(field.bytes);
    } else if (field.number == 2) {
      want_wire(field, 5, where);
      piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    } else if (field.number == 3) {
      want_wire(field, 0, where);
      if (field.value < 1 || field.value > 6)
        fail(fmt::format("[load] {}: piece type must be 1 to 6, got {}", where, field.value));
      piece.type = static_cast<PieceType>(field.value);
    }
  });
  return piece;
}

// A protobuf int32: negative values travel as 64-bit two's complement.
TokenId as_id(const Field& field, std::string_view where) {
  const auto value = static_cast<int64_t>(field.value);
  if (value < -1 || value > INT32_MAX)
    fail(fmt::format("[load] {}: token id {} is out of range", where, value));
  return static_cast<TokenId>(value);
}

void read_trainer(std::span<const std::byte> message, std::string_view where, Vocab& vocab) {
  uint64_t model_type = 1;  // unigram, the proto's default
  for_fields(message, where, [&](const Field& field) {
    if (field.number == 44 && field.wire == 2) vocab.unk_surface = as_text(field.bytes);
    if (field.wire != 0) return;
    switch (field.number) {
      case 3:
        model_type = field.value;
        break;
      case 24:
        if (field.value != 0)
          fail(fmt::format("[load] {}: treat_whitespace_as_suffix is not supported", where));
        break;
      case 40:
        vocab.unk = as_id(field, where);
        break;
      case 41:
        vocab.bos = as_id(field, where);
        break;
      case 42:
        vocab.eos = as_id(field, where);
        break;
      case 43:
        vocab.pad = as_id(field, where);
        break;
      default:
        break;
    }
  });
  if (model_type != kBpe)
    fail(
        fmt::format("[load] {}: want a BPE model (type 2), got model type {}: only Llama's kind "
                    "of SentencePiece model is supported",
                    where, model_type));
}

void read_normalizer(std::span<const std::byte> message, std::string_view where, Vocab& vocab) {
  for_fields(message, where, [&](const Field& field) {
    if (field.number == 2 && field.wire == 2 && !field.bytes.empty())
      fail(fmt::format("[load] {}: want identity normalization, got rules of {} bytes", where,
                       field.bytes.size()));
    if (field.wire != 0) return;
    if (field.number == 3) vocab.add_dummy_prefix = field.value != 0;
    if (field.number == 4) vocab.remove_extra_whitespaces = field.value != 0;
    if (field.number == 5 && field.value == 0)
      fail(fmt::format("[load] {}: escape_whitespaces = false is not supported", where));
  });
}

// ---- writing ----

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>((value & 0x7f) | 0x80));
  out.push_back(static_cast<char>(value));
}
void put_int(std::string& out, uint64_t number, int64_t value) {
  put_varint(out, number << 3);
  put_varint(out, static_cast<uint64_t>(value));
}
void put_bytes(std::string& out, uint64_t number, std::string_view bytes) {
  put_varint(out, number << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}
void put_float(std::string& out, uint64_t number, float value) {
  put_varint(out, number << 3 | 5);
  const auto bytes = std::bit_cast<std::array<char, 4>>(value);
  out.append(bytes.data(), bytes.size());
}

std::string trainer_message(const Vocab& vocab, const TrainingRecord* training) {
  bool byte_fallback = false;
  for (const Piece& piece : vocab.pieces) byte_fallback |= piece.type == PieceType::byte;
  const auto text_of = [&](TokenId id, const char* otherwise) {
    return id < 0 ? std::string(otherwise) : vocab.pieces[static_cast<size_t>(id)].text;
  };
  std::string out;
  put_int(out, 3, static_cast<int64_t>(kBpe));
  put_int(out, 4, static_cast<int64_t>(vocab.pieces.size()));
  if (training != nullptr) {
    put_float(out, 10, static_cast<float>(training->character_coverage));
    put_int(out, 20, training->max_piece_length);
    put_int(out, 21, training->split_by_unicode_script ? 1 : 0);
    put_int(out, 25, training->split_digits ? 1 : 0);
    put_int(out, 26, training->allow_whitespace_only_pieces ? 1 : 0);
  }
  put_int(out, 35, byte_fallback ? 1 : 0);
  put_int(out, 40, vocab.unk);
  put_int(out, 41, vocab.bos);
  put_int(out, 42, vocab.eos);
  put_int(out, 43, vocab.pad);
  put_bytes(out, 44, vocab.unk_surface);
  put_bytes(out, 45, text_of(vocab.unk, "<unk>"));
  put_bytes(out, 46, text_of(vocab.bos, "<s>"));
  put_bytes(out, 47, text_of(vocab.eos, "</s>"));
  put_bytes(out, 48, text_of(vocab.pad, "<pad>"));
  return out;
}

}  // namespace

Vocab parse_sentencepiece(std::span<const std::byte> bytes, std::string_view where) {
  Vocab vocab;
  vocab.unk = 0, vocab.bos = 1, vocab.eos = 2;  // the proto's defaults
  vocab.remove_extra_whitespaces = true;
  bool has_trainer = false;
  for_fields(bytes, where, [&](const Field& field) {
    if (field.number < 1 || field.number > 3) return;
    want_wire(field, 2, where);
    if (field.number == 1) {
      if (vocab.pieces.size() >= kMaxPieces)
        fail(fmt::format("[load] {}: more than {} pieces", where, kMaxPieces));
      vocab.pieces.push_back(read_piece(field.bytes, where));
    } else if (field.number == 2) {
      has_trainer = true;
      read_trainer(field.bytes, where, vocab);
    } else {
      read_normalizer(field.bytes, where, vocab);
    }
  });
  if (!has_trainer || vocab.pieces.empty())
    fail(
        fmt::format("[load] {}: not a SentencePiece model: want pieces and a trainer_spec, got {} "
                    "pieces",
                    where, vocab.pieces.size()));
  if (!is_utf8(vocab.unk_surface) || vocab.unk_surface.size() > kMaxPiece)
    fail(fmt::format("[load] {}: unk_surface must be a short UTF-8 text", where));
  finish_vocab(vocab, where);
  return vocab;
}

std::string make_sentencepiece(const Vocab& vocab, const TrainingRecord* training) {
  std::string out;
  for (const Piece& piece : vocab.pieces) {
    std::string message;
    put_bytes(message, 1, piece.text);
    put_float(message, 2, piece.score);
    if (piece.type != PieceType::normal) put_int(message, 3, static_cast<int64_t>(piece.type));
    put_bytes(out, 1, message);
  }
  put_bytes(out, 2, trainer_message(vocab, training));
  std::string normalizer;
  put_bytes(normalizer, 1, "identity");
  put_bytes(normalizer, 2, "");
  put_int(normalizer, 3, vocab.add_dummy_prefix ? 1 : 0);
  put_int(normalizer, 4, vocab.remove_extra_whitespaces ? 1 : 0);
  put_int(normalizer, 5, 1);
  put_bytes(out, 3, normalizer);
  return out;
}

}  // namespace tinyllama
