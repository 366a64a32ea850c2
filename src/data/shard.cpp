// Token shards, see shard.h.
#include "data/shard.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>

#include "base/error.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "shards are read in place");

constexpr std::array<char, 8> kMagic = {'T', 'L', 'S', 'H', 'A', 'R', 'D', '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kMaxTwoBytes = 1U << 16;
constexpr uint32_t kMaxVocab = 1U << 28;  // far above any; ids must fit int32

struct Header {
  std::array<char, 8> magic = kMagic;
  uint32_t version = kVersion;
  uint32_t token_bytes = 0;
  uint64_t n_tokens = 0, n_documents = 0, fingerprint = 0;
  uint32_t vocab_size = 0;
  int32_t eos = kNoToken;
  uint32_t tokens_crc = 0, index_crc = 0, zero = 0, header_crc = 0;
};
static_assert(sizeof(Header) == 64);

constexpr std::string_view kLitMagic = "LITPKDS";
constexpr size_t kLitHeader = 24;
constexpr int32_t kLlmcGpt2 = 20240520, kLlmcLlama3 = 20240801;
constexpr size_t kLlmcHeader = 1024;

size_t width_of(TokenType type) {
  constexpr std::array<size_t, 7> kWidths = {1, 1, 2, 2, 4, 4, 8};
  return kWidths[static_cast<size_t>(type)];
}

uint32_t crc(std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(
      ::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

template <class T>
T load(std::span<const std::byte> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

// Widens ids; false when one is not in [0, limit).
template <class T>
bool widen(const std::byte* from, std::span<TokenId> to, uint32_t limit) {
  bool good = true;
  for (size_t i = 0; i < to.size(); i++) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    // A negative id becomes a huge one.
    const auto id = static_cast<uint64_t>(int64_t{value});
    good &= id < limit;
    to[i] = static_cast<TokenId>(id);
  }
  return good;
}

bool widen(TokenType type, const std::byte* from, std::span<TokenId> to, uint32_t limit) {
  switch (type) {
    case TokenType::u8:
      return widen<uint8_t>(from, to, limit);
    case TokenType::i8:
      return widen<int8_t>(from, to, limit);
    case TokenType::u16:
      return widen<uint16_t>(from, to, limit);
    case TokenType::i16:
      return widen<int16_t>(from, to, limit);
    case TokenType::u32:
      return widen<uint32_t>(from, to, limit);
    case TokenType::i32:
      return widen<int32_t>(from, to, limit);
    case TokenType::i64:
      return widen<int64_t>(from, to, limit);
  }
  return false;
}

}  // namespace

uint64_t vocab_fingerprint(const Vocab& vocab) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  const auto mix = [&](std::string_view bytes) {
    for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  };
  for (const Piece& piece : vocab.pieces) {
    mix(piece.text);
    mix(std::string_view("\0", 1));
  }
  return hash == 0 ? 1 : hash;
}

ShardVocab shard_vocab(const Vocab& vocab) {
  return {vocab_fingerprint(vocab), static_cast<uint32_t>(vocab.pieces.size()), vocab.eos};
}

TokenShard::TokenShard(const std::string& path) : file_(path) {
  const std::string_view start(reinterpret_cast<const char*>(file_.bytes().data()),
                               std::min<size_t>(file_.size(), 8));
  const int32_t magic = start.size() == 8 ? load<int32_t>(file_.bytes(), 0) : 0;
  if (start == std::string_view(kMagic.data(), kMagic.size())) {
    open_own();
  } else if (start.starts_with(kLitMagic)) {
    open_litpkds();
  } else if (magic == kLlmcGpt2 || magic == kLlmcLlama3) {
    open_llmc();
  } else {
    fail(fmt::format(
        "[shard] {}: want tokens packed by tinyllama prepare, lit-gpt (LITPKDS) or llm.c (.bin), "
        "got {}",
        path, file_.size() == 0 ? "an empty file" : "another kind of file"));
  }
}

// Checks that the file is the header of `offset` bytes, the tokens, and the index, no more and no
// less.
void TokenShard::want_size(uint64_t offset, uint64_t index_bytes) {
  offset_ = offset;
  const uint64_t most = (std::numeric_limits<uint64_t>::max() - offset) / 16;
  if (n_tokens_ <= most && index_bytes <= most) {
    const uint64_t tokens_end = offset + n_tokens_ * width_of(type_);
    index_offset_ = index_bytes == 0 ? tokens_end : (tokens_end + 7) / 8 * 8;
    if (index_offset_ + index_bytes == file_.size()) return;
  }
  fail(
      fmt::format("[shard] {}: the header tells of {} tokens of {} bytes, which a file of {} bytes "
                  "does not hold exactly: it is truncated or damaged",
                  path(), n_tokens_, width_of(type_), file_.size()));
}

void TokenShard::open_own() {
  format_ = "tinyllama";
  if (file_.size() < sizeof(Header))
    fail(fmt::format("[shard] {}: want a header of {} bytes, got {}: the file is truncated", path(),
                     sizeof(Header), file_.size()));
  const auto header = load<Header>(file_.bytes(), 0);
  if (header.header_crc != crc(file_.bytes().first(offsetof(Header, header_crc))))
    fail(fmt::format("[shard] {}: the header's checksum does not match: the file is damaged",
                     path()));
  if (header.version != kVersion)
    fail(
        fmt::format("[shard] {}: want version {}, got {}: prepare the data again with this program",
                    path(), kVersion, header.version));
  if ((header.token_bytes != 2 && header.token_bytes != 4) || header.vocab_size == 0 ||
      header.vocab_size > kMaxVocab || header.zero != 0 ||
      (header.token_bytes == 2 && header.vocab_size > kMaxTwoBytes) ||
      (header.eos != kNoToken &&
       (header.eos < 0 || static_cast<uint32_t>(header.eos) >= header.vocab_size)) ||
      header.n_documents > header.n_tokens || (header.n_tokens > 0 && header.n_documents == 0))
    fail(
        fmt::format("[shard] {}: the header contradicts itself: {} documents, {} tokens of {} "
                    "bytes, vocabulary {}, eos {}",
                    path(), header.n_documents, header.n_tokens, header.token_bytes,
                    header.vocab_size, header.eos));
  type_ = header.token_bytes == 2 ? TokenType::u16 : TokenType::u32;
  vocab_ = {header.fingerprint, header.vocab_size, header.eos};
  n_tokens_ = header.n_tokens;
  n_documents_ = header.n_documents;
  tokens_crc_ = header.tokens_crc;
  index_crc_ = header.index_crc;
  indexed_ = true;
  want_size(sizeof(Header), n_documents_ * sizeof(uint64_t));
}

// Magic, u64 version, u8 type, u64 elements: see PackedDatasetBuilder of lit-gpt.
void TokenShard::open_litpkds() {
  format_ = "LITPKDS";
  if (file_.size() < kLitHeader)
    fail(fmt::format("[shard] {}: want a LITPKDS header of {} bytes, got {}: the file is truncated",
                     path(), kLitHeader, file_.size()));
  const auto version = load<uint64_t>(file_.bytes(), 7);
  const auto code = load<uint8_t>(file_.bytes(), 15);
  if (version != 1)
    fail(fmt::format("[shard] {}: want LITPKDS version 1, got {}", path(), version));
  switch (code) {
    case 1:
      type_ = TokenType::u8;
      break;
    case 2:
      type_ = TokenType::i8;
      break;
    case 3:
      type_ = TokenType::i16;
      break;
    case 4:
      type_ = TokenType::i32;
      break;
    case 5:
      type_ = TokenType::i64;
      break;
    case 8:
      type_ = TokenType::u16;
      break;
    default:
      fail(fmt::format("[shard] {}: want a LITPKDS type of whole numbers (1 to 5, 8), got {}",
                       path(), code));
  }
  n_tokens_ = load<uint64_t>(file_.bytes(), 16);
  want_size(kLitHeader, 0);
}

// 256 int32: magic, version (1, for Llama 3 also 7), tokens.
void TokenShard::open_llmc() {
  format_ = "llm.c";
  if (file_.size() < kLlmcHeader)
    fail(fmt::format("[shard] {}: want an llm.c header of {} bytes, got {}: the file is truncated",
                     path(), kLlmcHeader, file_.size()));
  const bool gpt2 = load<int32_t>(file_.bytes(), 0) == kLlmcGpt2;
  const auto version = load<int32_t>(file_.bytes(), 4), tokens = load<int32_t>(file_.bytes(), 8);
  if (version != 1 && (gpt2 || version != 7))
    fail(fmt::format("[shard] {}: want llm.c version {}, got {}", path(), gpt2 ? "1" : "1 or 7",
                     version));
  if (tokens < 0) fail(fmt::format("[shard] {}: want a number of tokens, got {}", path(), tokens));
  type_ = gpt2 ? TokenType::u16 : TokenType::u32;
  n_tokens_ = static_cast<uint64_t>(tokens);
  want_size(kLlmcHeader, 0);
}

std::span<const std::byte> TokenShard::token_bytes() const {
  return file_.bytes().subspan(offset_, n_tokens_ * width_of(type_));
}

void TokenShard::read(uint64_t first, std::span<TokenId> to) const {
  TL_CHECK(first <= n_tokens_ && to.size() <= n_tokens_ - first);
  const uint32_t limit = vocab_.vocab_size != 0 ? vocab_.vocab_size : kMaxVocab;
  const std::byte* from = token_bytes().data() + first * width_of(type_);
  if (!widen(type_, from, to, limit))
    fail(
        fmt::format("[shard] {}: an id at token {} or soon after is not in [0, {}): the file is "
                    "damaged",
                    path(), first, limit));
}

std::span<const uint64_t> TokenShard::documents() const {
  if (n_documents_ == 0) return {};
  const auto bytes = file_.bytes().subspan(index_offset_, n_documents_ * sizeof(uint64_t));
  const std::span starts(reinterpret_cast<const uint64_t*>(bytes.data()), n_documents_);
  std::call_once(*index_checked_, [&] {
    bool good = crc(bytes) == index_crc_ && starts.front() == 0 && starts.back() < n_tokens_;
    for (size_t i = 1; i < starts.size(); i++) good &= starts[i - 1] < starts[i];
    if (!good)
      fail(fmt::format("[shard] {}: the index of documents is damaged: prepare the data again",
                       path()));
  });
  return starts;
}

void TokenShard::verify() const {
  if (indexed_ && crc(token_bytes()) != tokens_crc_)
    fail(fmt::format("[shard] {}: the tokens' checksum does not match: the file is damaged",
                     path()));
  documents();
  std::vector<TokenId> buffer(size_t{1} << 16);
  for (uint64_t at = 0; at < n_tokens_;) {
    const size_t n = static_cast<size_t>(std::min<uint64_t>(buffer.size(), n_tokens_ - at));
    read(at, std::span(buffer).first(n));
    at += n;
  }
}

TokenFolder::TokenFolder(const std::string& path) : path_(path) {
  std::vector<std::string> files;
  if (fs::is_directory(path)) {
    std::error_code code;
    const fs::directory_iterator entries(path, code);
    if (code) fail(fmt::format("[shard] {}: {}", path, code.message()));
    for (const auto& entry : entries) {
      const std::string name = entry.path().filename();
      if (name.starts_with(kUnfinished))
        fail(fmt::format(
            "[shard] {}: `tinyllama prepare` has not finished here (it left {}): run it "
            "again, it goes on where it stopped",
            path, name));
      const std::string suffix = entry.path().extension();
      if (entry.is_regular_file() && (suffix == kShardSuffix || suffix == ".bin"))
        files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    if (files.empty())
      fail(
          fmt::format("[shard] {}: want token shards ({} or .bin) in this folder, got none: make "
                      "them with `tinyllama prepare`",
                      path, kShardSuffix));
  } else {
    files.push_back(path);
  }
  uint64_t total = 0;
  shards_.reserve(files.size());
  for (const std::string& file : files) {
    shards_.emplace_back(file);
    const TokenShard& shard = shards_.back();
    if (shard.vocab() != vocab())
      fail(fmt::format("[shard] {}: its tokens are of another tokenizer than those of {}", file,
                       shards_.front().path()));
    total += shard.n_tokens();
    ends_.push_back(total);
  }
}

uint64_t TokenFolder::n_documents() const {
  uint64_t total = 0;
  for (const TokenShard& shard : shards_) total += shard.n_documents();
  return total;
}

bool TokenFolder::has_documents() const {
  return std::all_of(shards_.begin(), shards_.end(),
                     [](const TokenShard& shard) { return shard.has_documents(); });
}

size_t TokenFolder::shard_of(uint64_t at) const {
  TL_CHECK(at < n_tokens());
  return static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin());
}

void TokenFolder::read(uint64_t first, std::span<TokenId> to) const {
  TL_CHECK(first <= n_tokens() && to.size() <= n_tokens() - first);
  while (!to.empty()) {
    const size_t shard = shard_of(first);
    const auto n = static_cast<size_t>(std::min<uint64_t>(to.size(), ends_[shard] - first));
    shards_[shard].read(first - first_token(shard), to.first(n));
    first += n;
    to = to.subspan(n);
  }
}

ShardWriter::ShardWriter(const ShardVocab& vocab)
    : vocab_(vocab), width_(vocab.vocab_size <= kMaxTwoBytes ? 2 : 4) {
  TL_CHECK(vocab.vocab_size > 0 && vocab.vocab_size <= kMaxVocab);
}

void ShardWriter::add(std::span<const TokenId> document) {
  TL_CHECK(!document.empty());
  starts_.push_back(n_tokens());
  const size_t before = tokens_.size();
  tokens_.resize(before + document.size() * width_);
  char* to = tokens_.data() + before;
  for (const TokenId id : document) {
    TL_CHECK(id >= 0 && static_cast<uint32_t>(id) < vocab_.vocab_size);
    std::memcpy(to, &id, width_);  // the low bytes come first
    to += width_;
  }
}

void ShardWriter::write(const std::string& path) {
  const auto tokens = std::as_bytes(std::span(tokens_));
  const auto index = std::as_bytes(std::span(starts_));
  Header header;
  header.token_bytes = static_cast<uint32_t>(width_);
  header.n_tokens = n_tokens();
  header.n_documents = n_documents();
  header.fingerprint = vocab_.fingerprint;
  header.vocab_size = vocab_.vocab_size;
  header.eos = vocab_.eos;
  header.tokens_crc = crc(tokens);
  header.index_crc = crc(index);
  const auto bytes = std::as_bytes(std::span(&header, 1));
  header.header_crc = crc(bytes.first(offsetof(Header, header_crc)));
  AtomicFile file(path);
  file.write(bytes);
  file.write(tokens);
  if (!index.empty()) file.pad_to(sizeof(uint64_t));
  file.write(index);
  file.commit();
  tokens_.clear();
  starts_.clear();
}

}  // namespace tinyllama
