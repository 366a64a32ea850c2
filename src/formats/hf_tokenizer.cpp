// Reading. The heart is the way back from merge ranks to scores; see scores_from_ranks().
#include "formats/hf_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "base/error.h"
#include "formats/json_detail.h"
#include "formats/vocab_check.h"

namespace tinyllama {
namespace {

using json_detail::boolean;
using json_detail::find;
using json_detail::Json;
using Merges = std::vector<std::pair<TokenId, TokenId>>;

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581
constexpr float kWhitespaceScore = -1e9f;            // Llama's score of runs of spaces
constexpr size_t kMaxGap = 1024;                     // ids that no file defines

struct AddedToken {
  std::string content;
  bool special = false;
};
using AddedTokens = std::map<int64_t, AddedToken>;

// Gives id its text. Ids right behind the vocabulary extend it; a small gap becomes unused pieces.
void add_tokens(Vocab& vocab, const AddedTokens& tokens, std::string_view where) {
  for (const auto& [id, token] : tokens) {
    if (id < 0 || static_cast<uint64_t>(id) >= std::min(vocab.pieces.size() + kMaxGap, kMaxPieces))
      fail(
          fmt::format("[load] {}: added token \"{}\" has id {}, far behind the {} pieces there are",
                      where, token.content.substr(0, 32), id, vocab.pieces.size()));
    while (vocab.pieces.size() <= static_cast<size_t>(id))
      vocab.pieces.push_back({"", 0.0f, PieceType::unused});
    Piece& piece = vocab.pieces[static_cast<size_t>(id)];
    if (piece.text.empty()) piece = {token.content, 0.0f, PieceType::normal};
    if (piece.text != token.content)
      fail(fmt::format("[load] {}: added token {} is \"{}\", but the vocabulary has \"{}\" there",
                       where, id, token.content.substr(0, 32), piece.text.substr(0, 32)));
    if (piece.type == PieceType::normal || piece.type == PieceType::user_defined)
      piece.type = token.special ? PieceType::control : PieceType::user_defined;
  }
}

AddedToken read_added(const Json& json, std::string_view where) {
  const auto content = json_detail::text(json, "content", where);
  if (!content) fail(fmt::format("[load] {}: an added token has no content", where));
  return {*content, boolean(json, "special", where).value_or(false)};
}

AddedTokens read_added_list(const Json& document, std::string_view where) {
  AddedTokens tokens;
  const Json* list = find(document, "added_tokens");
  if (list == nullptr) return tokens;
  if (!list->is_array()) fail(fmt::format("[load] {}: added_tokens must be a list", where));
  for (const Json& json : *list) {
    const int64_t id = json_detail::need_integer(json, "id", where);
    if (!tokens.emplace(id, read_added(json, where)).second)
      fail(fmt::format("[load] {}: added token {} appears twice", where, id));
  }
  return tokens;
}

// The text of a special token: a string, or an object with "content".
std::string token_text(const Json& object, const char* key, std::string_view where) {
  const Json* value = find(object, key);
  if (value == nullptr) return {};
  if (value->is_object()) return json_detail::text(*value, "content", where).value_or("");
  return json_detail::as_string(*value, key, where);
}

// ---- tokenizer.json ----

void read_pieces(const Json& model, Vocab& vocab, std::string_view where) {
  const Json* table = find(model, "vocab");
  if (table == nullptr || !table->is_object() || table->empty())
    fail(fmt::format("[load] {}: model.vocab must map pieces to ids", where));
  const size_t most = std::min(table->size() + kMaxGap, kMaxPieces);
  for (const auto& [text, value] : table->items()) {
    const int64_t id = json_detail::as_integer(value, "an id in model.vocab", where);
    if (id < 0 || static_cast<uint64_t>(id) >= most)
      fail(
          fmt::format("[load] {}: ids in model.vocab must be in [0, {}), got {}", where, most, id));
    if (static_cast<size_t>(id) >= vocab.pieces.size())
      vocab.pieces.resize(static_cast<size_t>(id) + 1, {"", 0.0f, PieceType::unused});
    Piece& piece = vocab.pieces[static_cast<size_t>(id)];
    if (!piece.text.empty()) fail(fmt::format("[load] {}: id {} belongs to two pieces", where, id));
    piece = {text, 0.0f, text.empty() ? PieceType::unused : PieceType::normal};
  }
}

Merges read_merges(const Json& model, const Vocab& vocab, std::string_view where) {
  Merges merges;
  const Json* list = find(model, "merges");
  if (list == nullptr) return merges;
  if (!list->is_array()) fail(fmt::format("[load] {}: model.merges must be a list", where));
  const auto index = piece_index(vocab);
  const auto id_of = [&](std::string_view text) {
    const auto at = index.find(text);
    if (at == index.end())
      fail(fmt::format("[load] {}: a merge names \"{}\", which is not in model.vocab", where,
                       text.substr(0, 32)));
    return at->second;
  };
  merges.reserve(list->size());
  std::string joined;
  for (const Json& item : *list) {
    std::string_view left, right;
    if (item.is_array() && item.size() == 2) {
      left = json_detail::as_string(item[0], "a merge", where);
      right = json_detail::as_string(item[1], "a merge", where);
    } else {
      const std::string_view pair = json_detail::as_string(item, "a merge", where);
      const size_t space = pair.find(' ');
      if (space == std::string_view::npos || pair.find(' ', space + 1) != std::string_view::npos)
        fail(fmt::format("[load] {}: merge \"{}\" must be two pieces with a space between", where,
                         pair.substr(0, 32)));
      left = pair.substr(0, space), right = pair.substr(space + 1);
    }
    // A piece that some tool lost (the file says "") takes its merges with it.
    if (left.empty() || right.empty()) continue;
    joined.assign(left).append(right);
    id_of(joined);
    merges.emplace_back(id_of(left), id_of(right));
  }
  return merges;
}

bool only_spaces(std::string_view text) {
  while (text.starts_with(kSpace)) text.remove_prefix(kSpace.size());
  return text.empty();
}

// The ids that merges make, each once, in order of the rank that makes it first.
std::vector<TokenId> made_by(const Merges& merges, const Vocab& vocab) {
  const auto index = piece_index(vocab);
  std::vector<bool> seen(vocab.pieces.size());
  std::vector<TokenId> order;
  std::string joined;
  for (const auto& [left, right] : merges) {
    joined.assign(vocab.pieces[static_cast<size_t>(left)].text)
        .append(vocab.pieces[static_cast<size_t>(right)].text);
    const TokenId id = index.at(joined);
    if (!seen[static_cast<size_t>(id)]) order.push_back(id);
    seen[static_cast<size_t>(id)] = true;
  }
  return order;
}

// Scores as SentencePiece's trainer gives them: 0, -1, -2, ... by id, from the first plain piece
// on, and -1e9 for runs of spaces that come last in rank. Where ids are not in order of rank, -rank
// instead.
void scores_from_ranks(Vocab& vocab, const Merges& merges) {
  const std::vector<TokenId> order = made_by(merges, vocab);
  const auto text_of = [&](TokenId id) {
    return std::string_view(vocab.pieces[static_cast<size_t>(id)].text);
  };
  size_t plain = order.size();  // order[0, plain) are scored one by one
  while (plain > 0 && only_spaces(text_of(order[plain - 1]))) plain--;
  if (plain == 0) plain = order.size();
  if (std::is_sorted(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(plain))) {
    TokenId base = 0;
    while (static_cast<size_t>(base) < vocab.pieces.size() &&
           vocab.pieces[static_cast<size_t>(base)].type != PieceType::normal)
      base++;
    for (size_t id = static_cast<size_t>(base); id < vocab.pieces.size(); id++) {
      if (vocab.pieces[id].type == PieceType::normal)
        vocab.pieces[id].score = -static_cast<float>(static_cast<TokenId>(id) - base);
    }
  } else {
    for (size_t rank = 0; rank < plain; rank++)
      vocab.pieces[static_cast<size_t>(order[rank])].score = -static_cast<float>(rank);
  }
  for (size_t i = plain; i < order.size(); i++)
    vocab.pieces[static_cast<size_t>(order[i])].score = kWhitespaceScore;
  if (plain < order.size()) {  // a single space goes with its runs
    const TokenId space = find_piece(vocab, kSpace);
    if (space != kNoToken) vocab.pieces[static_cast<size_t>(space)].score = kWhitespaceScore;
  }
}

// Whether the list says the same as the scores: equal up to the order of one piece's splits, and of
// the splits of pieces with equal scores.
bool same_merges(const Vocab& vocab, Merges listed, Merges scored) {
  if (listed.size() != scored.size()) return false;
  const auto index = piece_index(vocab);
  const auto score_of = [&](const std::pair<TokenId, TokenId>& merge) {
    return vocab
        .pieces[static_cast<size_t>(index.at(vocab.pieces[static_cast<size_t>(merge.first)].text +
                                             vocab.pieces[static_cast<size_t>(merge.second)].text))]
        .score;
  };
  std::vector<float> scores;
  for (const auto& merge : listed) scores.push_back(score_of(merge));
  if (!std::is_sorted(scores.begin(), scores.end(), std::greater<>())) return false;
  std::sort(listed.begin(), listed.end());
  std::sort(scored.begin(), scored.end());
  return listed == scored;
}

// Whether any component of a "Sequence" (or the component itself) has this type; gives it to
// `visit`.
void for_components(const Json* component, const char* list_key,
                    const std::function<void(const Json&, std::string_view)>& visit,
                    std::string_view where) {
  if (component == nullptr) return;
  const std::string type = json_detail::text(*component, "type", where).value_or("");
  const Json* list = find(*component, list_key);
  if (type == "Sequence" && list != nullptr && list->is_array()) {
    for (const Json& part : *list) {
      if (part.is_object()) visit(part, json_detail::text(part, "type", where).value_or(""));
    }
  } else {
    visit(*component, type);
  }
}

void read_prefix(const Json& document, Vocab& vocab, std::string_view where) {
  vocab.add_dummy_prefix = false;
  for_components(
      find(document, "normalizer"), "normalizers",
      [&](const Json&, std::string_view type) {
        if (type == "Prepend") vocab.add_dummy_prefix = true;
        if (type != "Prepend" && type != "Replace" && !type.empty())
          fail(fmt::format("[load] {}: normalizer {} is not supported: use tokenizer.model", where,
                           type));
      },
      where);
  for_components(
      find(document, "pre_tokenizer"), "pretokenizers",
      [&](const Json& part, std::string_view type) {
        if (type != "Metaspace")
          fail(
              fmt::format("[load] {}: pre-tokenizer {} is not supported: only SentencePiece "
                          "vocabularies (Llama 1 and 2, TinyLlama) are",
                          where, type));
        const std::string scheme =
            json_detail::text(part, "prepend_scheme", where)
                .value_or(boolean(part, "add_prefix_space", where).value_or(true) ? "always"
                                                                                  : "never");
        vocab.add_dummy_prefix = scheme != "never";
        vocab.prefix_after_special = scheme == "always";
      },
      where);
}

void read_template(const Json& document, Vocab& vocab, std::string_view where) {
  vocab.add_bos = false;
  const Json* post = find(document, "post_processor");
  if (post == nullptr) return;
  const Json* single = find(*post, "single");
  if (single == nullptr || !single->is_array() || single->empty()) return;
  const auto special = [&](const Json& part) {
    const Json* token = find(part, "SpecialToken");
    return token == nullptr
               ? kNoToken
               : find_piece(vocab, json_detail::text(*token, "id", where).value_or(""));
  };
  if (const TokenId id = special(single->front()); id != kNoToken)
    vocab.bos = id, vocab.add_bos = true;
  if (single->size() > 1) {
    if (const TokenId id = special(single->back()); id != kNoToken)
      vocab.eos = id, vocab.add_eos = true;
  }
}

void mark_types(const Json& model, Vocab& vocab, std::string_view where) {
  const bool byte_fallback = boolean(model, "byte_fallback", where).value_or(false);
  for (Piece& piece : vocab.pieces) {
    if (byte_fallback && byte_of_piece(piece.text) >= 0) piece.type = PieceType::byte;
  }
  std::string unknown = json_detail::text(model, "unk_token", where).value_or("<unk>");
  vocab.unk = find_piece(vocab, unknown);
  if (vocab.unk != kNoToken) vocab.pieces[static_cast<size_t>(vocab.unk)].type = PieceType::unknown;
}

}  // namespace

Merges merges_of_scores(const Vocab& vocab) {
  const auto index = piece_index(vocab);
  const auto plain = [&](TokenId id) {
    const PieceType type = vocab.pieces[static_cast<size_t>(id)].type;
    return type == PieceType::normal || type == PieceType::user_defined;
  };
  std::vector<TokenId> order(vocab.pieces.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    return vocab.pieces[static_cast<size_t>(a)].score > vocab.pieces[static_cast<size_t>(b)].score;
  });
  Merges merges;
  for (const TokenId id : order) {
    if (!plain(id)) continue;
    const std::string_view text = vocab.pieces[static_cast<size_t>(id)].text;
    const size_t first = merges.size();
    for (size_t cut = 1; cut < text.size(); cut++) {
      if ((static_cast<unsigned char>(text[cut]) & 0xc0) == 0x80) continue;  // inside a character
      const auto left = index.find(text.substr(0, cut)), right = index.find(text.substr(cut));
      if (left != index.end() && right != index.end() && plain(left->second) &&
          plain(right->second))
        merges.emplace_back(left->second, right->second);
    }
    std::sort(merges.begin() + static_cast<std::ptrdiff_t>(first), merges.end());
  }
  return merges;
}

Vocab parse_tokenizer_json(std::string_view text, std::string_view where) {
  const Json document = json_detail::parse_object(text, where);
  const Json* model = find(document, "model");
  if (model == nullptr || json_detail::text(*model, "type", where).value_or("BPE") != "BPE")
    fail(fmt::format("[load] {}: want a tokenizer model of type BPE", where));
  Vocab vocab;
  read_prefix(document, vocab, where);
  read_pieces(*model, vocab, where);
  mark_types(*model, vocab, where);
  Merges merges = read_merges(*model, vocab, where);
  add_tokens(vocab, read_added_list(document, where), where);
  vocab.bos = find_piece(vocab, "<s>");
  vocab.eos = find_piece(vocab, "</s>");
  read_template(document, vocab, where);
  finish_vocab(vocab, where);
  scores_from_ranks(vocab, merges);
  if (!same_merges(vocab, merges, merges_of_scores(vocab))) vocab.merges = std::move(merges);
  return vocab;
}

void apply_tokenizer_json_additions(Vocab& vocab, std::string_view text, std::string_view where) {
  Json document = Json::object();
  for (const char* key : {"added_tokens", "normalizer", "pre_tokenizer"}) {
    const std::string_view value = json_detail::member_text(text, key);
    if (!value.empty()) document[key] = json_detail::parse(value, where);
  }
  add_tokens(vocab, read_added_list(document, where), where);
  if (find(document, "pre_tokenizer") != nullptr) read_prefix(document, vocab, where);
  finish_vocab(vocab, where);
}

void apply_added_tokens(Vocab& vocab, std::string_view text, std::string_view where) {
  const Json document = json_detail::parse_object(text, where);
  AddedTokens tokens;
  for (const auto& [content, value] : document.items()) {
    const int64_t id = json_detail::as_integer(value, "an added token's id", where);
    if (!tokens.emplace(id, AddedToken{content, true}).second)
      fail(fmt::format("[load] {}: two added tokens have id {}", where, id));
  }
  add_tokens(vocab, tokens, where);
  finish_vocab(vocab, where);
}

void apply_tokenizer_config(Vocab& vocab, std::string_view text, std::string_view where) {
  const Json json = json_detail::parse_object(text, where);
  if (const Json* decoder = find(json, "added_tokens_decoder");
      decoder != nullptr && decoder->is_object()) {
    AddedTokens tokens;
    for (const auto& [key, value] : decoder->items()) {
      const bool digits = !key.empty() && key.size() < 10 &&
                          key.find_first_not_of("0123456789") == std::string::npos;
      if (!digits)
        fail(fmt::format("[load] {}: added_tokens_decoder has the id \"{}\"", where,
                         key.substr(0, 32)));
      tokens[std::stoll(key)] = read_added(value, where);
    }
    add_tokens(vocab, tokens, where);
  }
  const auto special = [&](const char* key, TokenId& id) {
    const std::string name = token_text(json, key, where);
    const TokenId found = name.empty() ? kNoToken : find_piece(vocab, name);
    if (found != kNoToken) id = found;
  };
  special("bos_token", vocab.bos);
  special("eos_token", vocab.eos);
  special("unk_token", vocab.unk);
  special("pad_token", vocab.pad);
  vocab.add_bos = boolean(json, "add_bos_token", where).value_or(vocab.add_bos);
  vocab.add_eos = boolean(json, "add_eos_token", where).value_or(vocab.add_eos);
  vocab.add_dummy_prefix =
      boolean(json, "add_prefix_space", where).value_or(vocab.add_dummy_prefix);
  const Json* chat = find(json, "chat_template");
  if (chat != nullptr && chat->is_string()) vocab.chat_template = chat->get<std::string>();
  if (chat != nullptr && chat->is_array()) {  // several, by name
    for (const Json& named : *chat) {
      const std::string name = json_detail::text(named, "name", where).value_or("");
      if (name == "default" || vocab.chat_template.empty())
        vocab.chat_template = json_detail::text(named, "template", where).value_or("");
    }
  }
  finish_vocab(vocab, where);
}

}  // namespace tinyllama
