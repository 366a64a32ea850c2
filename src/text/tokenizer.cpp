// Encoding: control tokens are cut out first, then user-defined pieces; what is left is cut where
// no merge can cross, and each such word is looked up or merged.
#include "text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/rng.h"
#include "text/tokenizer_impl.h"
#include "text/utf8.h"

namespace tinyllama {

namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The value of "<0x41>".
int byte_value(std::string_view piece, size_t id) {
  const bool shaped = piece.size() == 6 && piece.starts_with("<0x") && piece[5] == '>';
  const int high = shaped ? hex_digit(piece[3]) : -1, low = shaped ? hex_digit(piece[4]) : -1;
  if (high < 0 || low < 0) {
    fail(fmt::format("[tokenizer] piece {} is of type byte: want <0x00> to <0xFF>, got {}", id,
                     to_valid_utf8(piece)));
  }
  return high * 16 + low;
}

void check_id(const Vocab& vocab, TokenId id, const char* what) {
  if (id < kNoToken || id >= static_cast<TokenId>(vocab.pieces.size())) {
    fail(fmt::format("[tokenizer] {} is {}, the vocabulary has {} pieces", what, id,
                     vocab.pieces.size()));
  }
}

const Vocab& checked(const Vocab& vocab) {
  if (vocab.pieces.empty()) fail("[tokenizer] the vocabulary is empty");
  if (vocab.pieces.size() > (size_t{1} << 24)) {
    fail(fmt::format("[tokenizer] {} pieces, at most 2^24 are supported", vocab.pieces.size()));
  }
  check_id(vocab, vocab.bos, "bos");
  check_id(vocab, vocab.eos, "eos");
  check_id(vocab, vocab.unk, "unk");
  check_id(vocab, vocab.pad, "pad");
  for (const TokenId id : vocab.extra_eos) check_id(vocab, id, "an end-of-turn id");
  return vocab;
}

uint64_t fingerprint_of(const Vocab& vocab) {
  uint64_t hash = hash_key(vocab.pieces.size(), vocab.merges.size(), vocab.unk);
  for (const Piece& piece : vocab.pieces) {
    uint32_t score;
    std::memcpy(&score, &piece.score, sizeof score);
    hash = hash_key(hash ^ fnv1a64(piece.text), score, static_cast<int>(piece.type));
  }
  for (const auto& [left, right] : vocab.merges) hash = hash_key(hash, left, right);
  return hash;
}

}  // namespace

EncodeScratch::EncodeScratch() : state_(std::make_unique<State>()) {}
EncodeScratch::~EncodeScratch() = default;
EncodeScratch::EncodeScratch(EncodeScratch&&) noexcept = default;
EncodeScratch& EncodeScratch::operator=(EncodeScratch&&) noexcept = default;

Tokenizer::Impl::Impl(Vocab from)
    : vocab(std::move(from)), bpe(checked(vocab)), fingerprint(fingerprint_of(vocab)) {
  byte_ids.fill(kNoToken);
  byte_values.assign(vocab.pieces.size(), -1);
  ids.reserve(vocab.pieces.size());
  std::vector<std::pair<std::string, TokenId>> special, symbol, safe, raw;
  for (size_t i = 0; i < vocab.pieces.size(); ++i) {
    const Piece& piece = vocab.pieces[i];
    const auto id = static_cast<TokenId>(i);
    ids.emplace(piece.text, id);
    switch (piece.type) {
      case PieceType::byte: {
        const int value = byte_value(piece.text, i);
        byte_values[i] = static_cast<int16_t>(value);
        TokenId& slot = byte_ids[static_cast<size_t>(value)];
        if (slot == kNoToken) slot = id;
        break;
      }
      case PieceType::control:
      case PieceType::unknown:
        special.emplace_back(piece.text, id);
        break;
      case PieceType::user_defined:
        if (is_marker(id)) special.emplace_back(piece.text, id);
        symbol.emplace_back(canonical_piece(piece.text), id);
        if (!is_marker(id)) safe.emplace_back(canonical_piece(piece.text), id);
        raw.emplace_back(piece.text, id);
        break;
      case PieceType::normal:
      case PieceType::unused:
        break;
    }
  }
  specials = PieceMatcher(std::move(special));
  symbols = PieceMatcher(std::move(symbol));
  harmless = PieceMatcher(std::move(safe));
  unnormalized = PieceMatcher(std::move(raw));
  fill_words();
}

bool Tokenizer::Impl::is_marker(TokenId id) const {
  const Piece& piece = vocab.pieces[static_cast<size_t>(id)];
  if (piece.type != PieceType::user_defined) return false;
  const auto& eos = vocab.extra_eos;
  return (piece.text.starts_with("<|") && piece.text.ends_with("|>")) || id == vocab.bos ||
         id == vocab.eos || std::find(eos.begin(), eos.end(), id) != eos.end();
}

// Finds the pieces that, as a whole word, encode to themselves: nearly all.
void Tokenizer::Impl::fill_words() {
  ascii_words.fill(kNoToken);
  words = WordTable(vocab.pieces.size());
  if (bpe.has_unused()) return;
  EncodeScratch::State state;
  for (char32_t c = 0; c < ascii_words.size(); ++c) {
    const Symbol symbol = bpe.symbol(c);
    if (symbol >= 0) {
      ascii_words[c] = symbol;
    } else if (c != ' ') {
      ascii_words[c] = byte_ids[c];
    }
  }
  for (size_t i = 0; i < vocab.pieces.size(); ++i) {
    if (vocab.pieces[i].type != PieceType::normal) continue;
    const std::string text = canonical_piece(vocab.pieces[i].text);
    if (text.empty() || text.size() > WordKey::kMaxBytes) continue;
    state.symbols.clear();
    split(text, state.symbols);
    bpe.merge(state.symbols, state.merging);
    if (state.symbols.size() != 1 || state.symbols[0] != static_cast<Symbol>(i)) continue;
    std::array<char, WordKey::kMaxBytes + WordKey::kPadding> padded{};
    std::copy(text.begin(), text.end(), padded.begin());
    words.insert(WordKey(padded.data(), text.size()), text.size(), static_cast<TokenId>(i));
  }
}

// SentencePiece's remove_extra_whitespaces: no spaces at either end, one in place of several. At
// the end it takes U+2581 for a space too, elsewhere not.
std::string Tokenizer::Impl::squeeze_spaces(std::string_view text) const {
  std::string squeezed;
  bool after_space = true;  // at the start as well
  while (!text.empty()) {
    const PieceMatcher::Match match = unnormalized.match_at(text, 0);
    const Utf8Char c = decode_utf8(text);
    const size_t length = match.length > 0 ? match.length : static_cast<size_t>(c.length);
    std::string_view part = text.substr(0, length);
    text.remove_prefix(length);
    while (after_space && part.starts_with(' ')) part.remove_prefix(1);
    if (part.empty()) continue;
    squeezed.append(part);
    after_space = part.ends_with(' ');
  }
  while (squeezed.ends_with(' ') || squeezed.ends_with(kSpaceSymbol)) {
    squeezed.resize(squeezed.size() - (squeezed.ends_with(' ') ? 1 : kSpaceSymbol.size()));
  }
  return squeezed;
}

// The text as BpeModel wants it, in the scratch, with padding behind.
std::string_view Tokenizer::Impl::canonicalize(std::string_view text, bool prefix,
                                               EncodeScratch::State& state) const {
  const size_t valid = valid_utf8_prefix(text);
  size_t n_invalid = 0;
  for (std::string_view rest = text.substr(valid); !rest.empty();) {
    ++n_invalid;
    rest.remove_prefix(1);
    rest.remove_prefix(valid_utf8_prefix(rest));
  }
  const size_t room = 1 + text.size() + 2 * n_invalid + WordKey::kPadding;
  if (state.canonical.size() < room) state.canonical.resize(std::max(room, size_t{256}));
  char* const begin = state.canonical.data();
  char* to = begin;
  if (prefix) *to++ = ' ';
  for (bool first = true; !text.empty(); first = false) {
    std::string_view run = text.substr(0, first ? valid : valid_utf8_prefix(text));
    text.remove_prefix(run.size());
    while (!run.empty()) {
      const size_t plain = std::min(run.find(kSpaceSymbol), run.size());
      to = std::copy(run.data(), run.data() + plain, to);
      run.remove_prefix(plain);
      if (run.empty()) break;
      *to++ = ' ';
      run.remove_prefix(kSpaceSymbol.size());
    }
    if (text.empty()) break;
    to = std::copy(kReplacementUtf8.begin(), kReplacementUtf8.end(), to);
    text.remove_prefix(1);
  }
  return {begin, static_cast<size_t>(to - begin)};
}

void Tokenizer::Impl::split(std::string_view text, std::vector<Symbol>& to) const {
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    to.push_back(bpe.symbol(c.code));
    text.remove_prefix(static_cast<size_t>(c.length));
  }
}

// Appends the ids of one symbol: of a character without a piece, its bytes, or else <unk>, of which
// a run becomes one. `first` is where the ids of the current text begin in `out`.
void Tokenizer::Impl::emit(Symbol symbol, size_t first, std::vector<TokenId>& out) const {
  if (symbol >= 0) {
    out.push_back(symbol);
    return;
  }
  std::string bytes;
  append_utf8(bytes, static_cast<char32_t>(~symbol));
  const auto id_of_byte = [&](char b) { return byte_ids[static_cast<unsigned char>(b)]; };
  if (std::all_of(bytes.begin(), bytes.end(), [&](char b) { return id_of_byte(b) != kNoToken; })) {
    for (const char b : bytes) out.push_back(id_of_byte(b));
    return;
  }
  if (vocab.unk == kNoToken) {
    fail(
        fmt::format("[tokenizer] U+{:04X} is not in the vocabulary, which has neither byte pieces "
                    "nor an unknown piece",
                    ~symbol));
  }
  if (out.size() > first && out.back() == vocab.unk) return;
  out.push_back(vocab.unk);
}

void Tokenizer::Impl::append_word(const TokenId* word_ids, size_t n, size_t first,
                                  std::vector<TokenId>& out) const {
  const bool joins = out.size() > first && out.back() == vocab.unk && *word_ids == vocab.unk;
  out.insert(out.end(), word_ids + (joins ? 1 : 0), word_ids + n);
}

// `text` is a whole word: no merge can cross its ends. WordKey::kPadding bytes behind it are
// readable.
void Tokenizer::Impl::encode_word(const char* text, size_t length, size_t first,
                                  EncodeScratch::State& state, std::vector<TokenId>& out) const {
  if (length == 1) {
    const TokenId id = ascii_words[static_cast<unsigned char>(*text)];
    if (id != kNoToken) return out.push_back(id);
  }
  if (length > WordKey::kMaxBytes) {
    state.symbols.clear();
    split({text, length}, state.symbols);
    bpe.merge(state.symbols, state.merging);
    for (const Symbol symbol : state.symbols) emit(symbol, first, out);
    return;
  }
  const WordKey key(text, length);
  if (const TokenId id = words.find(key, length); id != kNoToken) return out.push_back(id);
  if (const WordCache::Entry* entry = state.cache.find(key, length)) {
    return append_word(entry->ids.data(), entry->n_ids, first, out);
  }
  state.symbols.clear();
  state.word_ids.clear();
  split({text, length}, state.symbols);
  bpe.merge(state.symbols, state.merging);
  for (const Symbol symbol : state.symbols) emit(symbol, 0, state.word_ids);
  state.cache.insert(key, length, state.word_ids.data(), state.word_ids.size());
  append_word(state.word_ids.data(), state.word_ids.size(), first, out);
}

void Tokenizer::Impl::encode_canonical(std::string_view text, size_t first,
                                       EncodeScratch::State& state,
                                       std::vector<TokenId>& out) const {
  const char* const end = text.data() + text.size();
  const auto char_at = [end](const char* at) {
    return decode_utf8({at, static_cast<size_t>(end - at)});
  };
  for (const char* at = text.data(); at < end;) {
    const char* const word = at;
    Utf8Char last = char_at(at);
    at += last.length;
    while (at < end) {
      const Utf8Char c = char_at(at);
      if (!bpe.joined(last.code, c.code)) break;
      at += c.length;
      last = c;
    }
    encode_word(word, static_cast<size_t>(at - word), first, state, out);
  }
}

// For vocabularies whose unused pieces can be formed: everything is merged in one go. User-defined
// pieces take part as symbols that no merge knows.
void Tokenizer::Impl::encode_whole(std::string_view text, const PieceMatcher& matcher, size_t first,
                                   EncodeScratch::State& state, std::vector<TokenId>& out) const {
  state.symbols.clear();
  for (size_t at = 0; at < text.size();) {
    const PieceMatcher::Match match = matcher.find(text, at);
    const size_t end = match.length > 0 ? match.begin : text.size();
    split(text.substr(at, end - at), state.symbols);
    if (match.length > 0) state.symbols.push_back(match.id);
    at = end + match.length;
  }
  bpe.merge(state.symbols, state.merging);
  for (const Symbol symbol : state.symbols) emit(symbol, first, out);
}

void Tokenizer::Impl::encode_plain(std::string_view text, bool prefix, bool untrusted,
                                   EncodeScratch::State& state, std::vector<TokenId>& out) const {
  std::string squeezed;
  if (vocab.remove_extra_whitespaces) {
    // Text of nothing but spaces is nothing; other text that ends up empty (U+2581 alone) loses its
    // prefix as well.
    squeezed = squeeze_spaces(text);
    text = squeezed;
  }
  if (text.empty()) return;
  const std::string_view canonical = canonicalize(text, prefix, state);
  const PieceMatcher& matcher = untrusted ? harmless : symbols;
  const size_t first = out.size();
  if (bpe.has_unused()) return encode_whole(canonical, matcher, first, state, out);
  for (size_t at = 0; at < canonical.size();) {
    const PieceMatcher::Match match = matcher.find(canonical, at);
    const size_t end = match.length > 0 ? match.begin : canonical.size();
    encode_canonical(canonical.substr(at, end - at), first, state, out);
    if (match.length > 0) out.push_back(match.id);
    at = end + match.length;
  }
}

Tokenizer::Tokenizer(Vocab vocab) : impl_(std::make_unique<const Impl>(std::move(vocab))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

const Vocab& Tokenizer::vocab() const {
  return impl_->vocab;
}

int Tokenizer::size() const {
  return static_cast<int>(impl_->vocab.pieces.size());
}

void Tokenizer::encode(std::string_view text, const EncodeOptions& options, EncodeScratch& scratch,
                       std::vector<TokenId>& ids) const {
  EncodeScratch::State& state = *scratch.state_;
  if (state.fingerprint != impl_->fingerprint) {
    state.cache.clear();
    state.fingerprint = impl_->fingerprint;
  }
  const Vocab& vocab = impl_->vocab;
  const size_t begin = ids.size();
  if (options.add_bos && vocab.bos != kNoToken) ids.push_back(vocab.bos);
  bool prefix = options.add_dummy_prefix.value_or(vocab.add_dummy_prefix);
  for (size_t at = 0; at < text.size();) {
    PieceMatcher::Match match;
    if (options.parse_special) match = impl_->specials.find(text, at);
    const size_t end = match.length > 0 ? match.begin : text.size();
    impl_->encode_plain(text.substr(at, end - at), prefix, options.untrusted, state, ids);
    at = end + match.length;
    if (match.length == 0) break;
    const bool repeats_bos = options.add_bos && match.id == vocab.bos && ids.size() == begin + 1;
    if (!repeats_bos) ids.push_back(match.id);
    prefix = prefix && vocab.prefix_after_special;
  }
  if (options.add_eos && vocab.eos != kNoToken &&
      (ids.size() == begin || ids.back() != vocab.eos)) {
    ids.push_back(vocab.eos);
  }
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  EncodeScratch scratch;
  std::vector<TokenId> ids;
  encode(text, options, scratch, ids);
  return ids;
}

std::vector<TokenId> Tokenizer::encode_prompt(std::string_view text, bool parse_special) const {
  EncodeOptions options;
  options.add_bos = impl_->vocab.add_bos;
  options.add_eos = impl_->vocab.add_eos;
  options.parse_special = parse_special;
  return encode(text, options);
}

const std::string& Tokenizer::piece(TokenId id) const {
  if (id < 0 || id >= size()) {
    fail(fmt::format("[tokenizer] no piece {}: the vocabulary has {}", id, size()));
  }
  return impl_->vocab.pieces[static_cast<size_t>(id)].text;
}

std::optional<TokenId> Tokenizer::id_of(std::string_view piece) const {
  const auto it = impl_->ids.find(piece);
  if (it == impl_->ids.end()) return std::nullopt;
  return it->second;
}

bool Tokenizer::is_control(TokenId id) const {
  if (id < 0 || id >= size()) return false;
  const PieceType type = impl_->vocab.pieces[static_cast<size_t>(id)].type;
  return type == PieceType::control || type == PieceType::unknown;
}

bool Tokenizer::is_eos(TokenId id) const {
  const Vocab& vocab = impl_->vocab;
  if (id == kNoToken) return false;
  return id == vocab.eos ||
         std::find(vocab.extra_eos.begin(), vocab.extra_eos.end(), id) != vocab.extra_eos.end();
}

}  // namespace tinyllama
