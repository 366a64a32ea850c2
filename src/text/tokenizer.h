// Text to token ids and back, exactly as the SentencePiece library does it for BPE models, in
// linear time. A Tokenizer is immutable once built, so any number of threads may share one.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/vocab.h"

namespace tinyllama {

struct EncodeOptions {
  bool add_bos =
      false;  // start with bos, unless the text itself starts with it (see parse_special)
  bool add_eos = false;
  // Whether the text of a control piece ("</s>") becomes that token. False for anything a user
  // wrote: then no text can produce a control token. Pieces of type user_defined are always found,
  // as SentencePiece does, for they carry no control.
  bool parse_special = false;
  // Also treat user_defined pieces that are turn markers ("<|im_end|>", an eos id) as mere text,
  // because some converters store markers under that type. Chat formats encode messages with this
  // set.
  bool untrusted = false;
  std::optional<bool> add_dummy_prefix;  // unset: as the vocabulary says
};

struct DecodeOptions {
  bool render_control = false;  // control tokens as their piece text ("<s>"); otherwise they vanish
  bool continues = false;       // text stands before these ids: a leading space is kept
};

// Memory that encode() reuses between calls: buffers, and a bounded cache of words already split.
// One per thread; any Tokenizer may be used with it (it forgets the last one's words).
class EncodeScratch {
 public:
  EncodeScratch();
  ~EncodeScratch();
  EncodeScratch(EncodeScratch&&) noexcept;
  EncodeScratch& operator=(EncodeScratch&&) noexcept;

 private:
  friend class Tokenizer;
  struct State;
  std::unique_ptr<State> state_;
};

class Tokenizer {
 public:
  // Throws Error when the vocabulary cannot be used: no pieces, an id out of range, a score that is
  // NaN.
  explicit Tokenizer(Vocab vocab);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  const Vocab& vocab() const;
  int size() const;  // number of pieces

  // Any bytes are accepted; those that are not UTF-8 count as U+FFFD each.
  std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options = {}) const;
  // Appends to `ids`. The fast form for many texts: keep one scratch per thread.
  void encode(std::string_view text, const EncodeOptions& options, EncodeScratch& scratch,
              std::vector<TokenId>& ids) const;
  // A whole prompt: with bos (and eos) where the vocabulary asks for it, never a second bos.
  std::vector<TokenId> encode_prompt(std::string_view text, bool parse_special = false) const;

  // The text of `ids`, always valid UTF-8. The space of the dummy prefix is removed; byte pieces
  // that form no valid character become U+FFFD; an id without a piece decodes as <unk> does.
  std::string decode(std::span<const TokenId> ids, const DecodeOptions& options = {}) const;

  // The piece as stored ("\u2581the"). Throws Error when there is no such id.
  const std::string& piece(TokenId id) const;
  std::optional<TokenId> id_of(std::string_view piece) const;
  bool is_control(TokenId id) const;  // control and unknown pieces
  bool is_eos(TokenId id) const;      // eos or one of extra_eos

 private:
  friend class Detokenizer;
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

// Decoding one token at a time: what push() and flush() return, joined, is what decode() returns.
class Detokenizer {
 public:
  // The tokenizer must outlive it.
  explicit Detokenizer(const Tokenizer& tokenizer, DecodeOptions options = {});

  // The text that is now certain; empty while a character's bytes are incomplete.
  std::string push(TokenId id);
  // What was held back: an unfinished character, as U+FFFD a byte. Then starts afresh.
  std::string flush();

 private:
  void append_bytes(std::string& to, bool final);

  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  std::string pending_;       // bytes of an unfinished character, at most 3
  bool at_start_ = true;      // no text yet: a leading space is the dummy prefix
  bool prefix_seen_ = false;  // the last piece gave up the dummy prefix
  bool any_text_ = false;
};

}  // namespace tinyllama
