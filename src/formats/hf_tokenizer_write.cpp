// Writing Hugging Face's tokenizer files, in the form that transformers 4.31 and later read.
#include <algorithm>

#include "formats/hf_tokenizer.h"
#include "formats/json_detail.h"
#include "formats/vocab_check.h"

namespace tinyllama {
namespace {

using json_detail::OrderedJson;

const std::string& text_of(const Vocab& vocab, TokenId id) {
  return vocab.pieces[static_cast<size_t>(id)].text;
}

bool is_added(const Piece& piece) {
  return piece.type == PieceType::unknown || piece.type == PieceType::control ||
         piece.type == PieceType::user_defined;
}

OrderedJson added_token(const Piece& piece) {
  return {{"content", piece.text}, {"single_word", false},
          {"lstrip", false},       {"rstrip", false},
          {"normalized", false},   {"special", piece.type != PieceType::user_defined}};
}

OrderedJson added_tokens(const Vocab& vocab) {
  OrderedJson list = OrderedJson::array();
  for (size_t id = 0; id < vocab.pieces.size(); id++) {
    if (!is_added(vocab.pieces[id])) continue;
    OrderedJson entry = {{"id", id}};
    entry.update(added_token(vocab.pieces[id]));
    list.push_back(std::move(entry));
  }
  return list;
}

OrderedJson replace(const char* from, const char* to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}

constexpr const char* kSpace = "\xE2\x96\x81";

// Llama's classic form: a normalizer that prepends and replaces. It adds the prefix after every
// special token; the other behaviour needs the newer Metaspace pre-tokenizer.
void put_prefix(OrderedJson& out, const Vocab& vocab) {
  out["normalizer"] = nullptr;
  out["pre_tokenizer"] = nullptr;
  if (vocab.add_dummy_prefix && !vocab.prefix_after_special) {
    out["pre_tokenizer"] = {{"type", "Metaspace"},
                            {"replacement", kSpace},
                            {"prepend_scheme", "first"},
                            {"split", false}};
  } else if (vocab.add_dummy_prefix) {
    out["normalizer"] = {
        {"type", "Sequence"},
        {"normalizers",
         OrderedJson::array({{{"type", "Prepend"}, {"prepend", kSpace}}, replace(" ", kSpace)})}};
  } else {
    out["normalizer"] = replace(" ", kSpace);
  }
}

// [bos] A [eos], and the same twice for pairs.
OrderedJson post_processor(const Vocab& vocab) {
  const bool bos = vocab.add_bos && vocab.bos >= 0, eos = vocab.add_eos && vocab.eos >= 0;
  OrderedJson single = OrderedJson::array(), pair = OrderedJson::array();
  OrderedJson special = OrderedJson::object();
  const auto token = [&](TokenId id, int type) -> OrderedJson {
    const std::string& text = text_of(vocab, id);
    special[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
    return {{"SpecialToken", {{"id", text}, {"type_id", type}}}};
  };
  const auto sequence = [&](const char* name, int type) {
    OrderedJson parts = OrderedJson::array();
    if (bos) parts.push_back(token(vocab.bos, type));
    parts.push_back({{"Sequence", {{"id", name}, {"type_id", type}}}});
    if (eos) parts.push_back(token(vocab.eos, type));
    return parts;
  };
  single = sequence("A", 0);
  pair = single;
  for (const OrderedJson& part : sequence("B", 1)) pair.push_back(part);
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", special}};
}

OrderedJson decoder(const Vocab& vocab) {
  OrderedJson steps =
      OrderedJson::array({replace(kSpace, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}});
  if (vocab.add_dummy_prefix)
    steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"type", "Sequence"}, {"decoders", steps}};
}

OrderedJson bpe_model(const Vocab& vocab) {
  OrderedJson out;
  out["type"] = "BPE";
  out["dropout"] = nullptr;
  out["unk_token"] = nullptr;
  if (vocab.unk >= 0) out["unk_token"] = text_of(vocab, vocab.unk);
  out["continuing_subword_prefix"] = nullptr;
  out["end_of_word_suffix"] = nullptr;
  out["fuse_unk"] = true;
  out["byte_fallback"] = std::any_of(vocab.pieces.begin(), vocab.pieces.end(),
                                     [](const Piece& p) { return p.type == PieceType::byte; });
  // Built directly: an ordered_json looks keys up linearly, too slow for 32,000 of them.
  OrderedJson::object_t table;
  table.reserve(vocab.pieces.size());
  for (size_t id = 0; id < vocab.pieces.size(); id++) {
    const Piece& piece = vocab.pieces[id];
    if (!piece.text.empty()) table.emplace_back(piece.text, id);
  }
  out["vocab"] = std::move(table);
  OrderedJson::array_t merges;
  const auto pairs = vocab.merges.empty() ? merges_of_scores(vocab) : vocab.merges;
  const bool spaces = std::any_of(vocab.pieces.begin(), vocab.pieces.end(), [](const Piece& p) {
    return p.text.find(' ') != std::string::npos;
  });
  merges.reserve(pairs.size());
  for (const auto& [left, right] : pairs) {
    if (spaces) {
      merges.push_back({text_of(vocab, left), text_of(vocab, right)});
    } else {
      merges.push_back(text_of(vocab, left) + " " + text_of(vocab, right));
    }
  }
  out["merges"] = std::move(merges);
  return out;
}

void for_special(const Vocab& vocab, const std::function<void(const char*, TokenId)>& visit) {
  visit("bos_token", vocab.bos);
  visit("eos_token", vocab.eos);
  visit("unk_token", vocab.unk);
  visit("pad_token", vocab.pad);
}

}  // namespace

std::string make_tokenizer_json(const Vocab& vocab) {
  OrderedJson out;
  out["version"] = "1.0";
  out["truncation"] = nullptr;
  out["padding"] = nullptr;
  out["added_tokens"] = added_tokens(vocab);
  put_prefix(out, vocab);
  out["post_processor"] = post_processor(vocab);
  out["decoder"] = decoder(vocab);
  out["model"] = bpe_model(vocab);
  return out.dump(2) + "\n";
}

std::string make_tokenizer_config(const Vocab& vocab, int64_t context) {
  OrderedJson out;
  out["add_bos_token"] = vocab.add_bos;
  out["add_eos_token"] = vocab.add_eos;
  OrderedJson decoder_table = OrderedJson::object();
  for (size_t id = 0; id < vocab.pieces.size(); id++) {
    if (is_added(vocab.pieces[id]))
      decoder_table[std::to_string(id)] = added_token(vocab.pieces[id]);
  }
  out["added_tokens_decoder"] = std::move(decoder_table);
  for_special(vocab, [&](const char* key, TokenId id) {
    out[key] = nullptr;
    if (id >= 0) out[key] = text_of(vocab, id);
  });
  if (!vocab.chat_template.empty()) out["chat_template"] = vocab.chat_template;
  out["clean_up_tokenization_spaces"] = false;
  out["legacy"] = vocab.prefix_after_special;
  out["model_max_length"] = context;
  out["padding_side"] = "right";
  out["sp_model_kwargs"] = OrderedJson::object();
  out["tokenizer_class"] = "LlamaTokenizer";
  out["use_default_system_prompt"] = false;
  return out.dump(2) + "\n";
}

std::string make_special_tokens_map(const Vocab& vocab) {
  OrderedJson out = OrderedJson::object();
  for_special(vocab, [&](const char* key, TokenId id) {
    if (id < 0) return;
    out[key] = {{"content", text_of(vocab, id)},
                {"lstrip", false},
                {"normalized", false},
                {"rstrip", false},
                {"single_word", false}};
  });
  return out.dump(2) + "\n";
}

}  // namespace tinyllama
