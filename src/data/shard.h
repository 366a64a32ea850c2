// Packed tokens on disk: the shards that `prepare` writes, and those of lit-gpt (LITPKDS) and llm.c
// (.bin), all seen through one view over the mapped file. A folder of shards is one long sequence.
//
// A shard of our own, little endian, is a header of 64 bytes, n_tokens ids of token_bytes each (2
// where the vocabulary fits, else 4), zeros up to a multiple of 8, and n_documents u64: the token
// that each document starts at. Documents are whole (none continues in the next shard), each ends
// with the end-of-sequence token, and there is never a filler behind the last one.
//
//   0  char[8]  "TLSHARD\n"       40  u32  vocab_size
//   8  u32      version, 1        44  i32  eos, -1 when there is none
//  12  u32      token_bytes       48  u32  CRC-32 of the tokens
//  16  u64      n_tokens          52  u32  CRC-32 of the index
//  24  u64      n_documents       56  u32  0
//  32  u64      fingerprint       60  u32  CRC-32 of the 60 bytes before
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "text/vocab.h"

namespace tinyllama {

// What the ids of a shard mean. Zero and kNoToken where a foreign format does not say.
struct ShardVocab {
  uint64_t fingerprint = 0;  // of the tokenizer, see vocab_fingerprint()
  uint32_t vocab_size = 0;
  TokenId eos = kNoToken;

  bool operator==(const ShardVocab&) const = default;
};

// A number that two vocabularies share when the same ids mean the same pieces, whichever file
// format they were read from; never zero.
uint64_t vocab_fingerprint(const Vocab& vocab);
ShardVocab shard_vocab(const Vocab& vocab);

// How a token is stored; the signed ones occur in LITPKDS alone.
enum class TokenType : uint8_t { u8, i8, u16, i16, u32, i32, i64 };

// One shard, mapped. Movable; safe to read from any number of threads.
class TokenShard {
 public:
  // Opens and checks the header and the file's size. Throws Error when it is no shard of a known
  // format, truncated, or has bytes that nobody announced.
  explicit TokenShard(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const char* format() const { return format_; }  // "tinyllama", "LITPKDS" or "llm.c"
  TokenType type() const { return type_; }
  const ShardVocab& vocab() const { return vocab_; }
  uint64_t n_tokens() const { return n_tokens_; }

  // Tokens [first, first + to.size()) widened into `to`. Throws Error on an id that is negative or
  // not in the vocabulary (where that is known). The range must be inside the shard.
  void read(uint64_t first, std::span<TokenId> to) const;

  // Whether the shard knows where documents start: ours do, foreign ones do not.
  bool has_documents() const { return indexed_; }
  uint64_t n_documents() const { return n_documents_; }
  // The starting token of each document, ascending, the first one 0; empty without an index. The
  // first call checks the index and throws Error when it is damaged.
  std::span<const uint64_t> documents() const;

  // Reads everything: the checksums (of our own shards) and every id. Throws Error on the first
  // thing wrong.
  void verify() const;

 private:
  void open_own();
  void open_litpkds();
  void open_llmc();
  void want_size(uint64_t offset, uint64_t index_bytes);
  std::span<const std::byte> token_bytes() const;

  MappedFile file_;
  const char* format_ = "";
  TokenType type_ = TokenType::u16;
  ShardVocab vocab_;
  uint64_t n_tokens_ = 0, n_documents_ = 0, offset_ = 0, index_offset_ = 0;
  uint32_t tokens_crc_ = 0, index_crc_ = 0;
  bool indexed_ = false;
  std::unique_ptr<std::once_flag> index_checked_ = std::make_unique<std::once_flag>();
};

// All shards of a folder (or a single file), sorted by name, as one sequence of tokens.
class TokenFolder {
 public:
  // Opens every .tok and .bin file of the folder. Throws Error when there is none, when one cannot
  // be read, when two are of different vocabularies, or when `prepare` has not finished the folder.
  explicit TokenFolder(const std::string& path);

  const std::string& path() const { return path_; }
  const std::vector<TokenShard>& shards() const { return shards_; }
  const ShardVocab& vocab() const { return shards_.front().vocab(); }
  uint64_t n_tokens() const { return ends_.back(); }
  uint64_t n_documents() const;
  bool has_documents() const;  // of every shard

  // The first token of a shard, counted from the folder's beginning.
  uint64_t first_token(size_t shard) const { return shard == 0 ? 0 : ends_[shard - 1]; }
  // The shard that holds token `at` < n_tokens().
  size_t shard_of(uint64_t at) const;
  // Tokens [first, first + to.size()), across shards where need be.
  void read(uint64_t first, std::span<TokenId> to) const;

 private:
  std::string path_;
  std::vector<TokenShard> shards_;
  std::vector<uint64_t> ends_;  // running totals of tokens
};

// Collects documents and writes them as a shard of our own.
class ShardWriter {
 public:
  explicit ShardWriter(const ShardVocab& vocab);

  // One document, its end-of-sequence token included. Empty ones are refused: TL_CHECK.
  void add(std::span<const TokenId> document);
  uint64_t n_tokens() const { return tokens_.size() / width_; }
  uint64_t n_documents() const { return starts_.size(); }
  // Writes the file, atomically, and starts afresh.
  void write(const std::string& path);

 private:
  ShardVocab vocab_;
  size_t width_;
  std::string tokens_;
  std::vector<uint64_t> starts_;
};

// The suffix of our shards, and the beginning of the name of the note that `prepare` keeps in a
// folder until it has finished there.
inline constexpr const char* kShardSuffix = ".tok";
inline constexpr const char* kUnfinished = "unfinished";

}  // namespace tinyllama
