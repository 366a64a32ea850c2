// Hugging Face's tokenizer files, in and out: tokenizer.json (a SentencePiece vocabulary as BPE
// merges), tokenizer_config.json, added_tokens.json, special_tokens_map.json.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/vocab.h"

namespace tinyllama {

// Reads tokenizer.json, merges written as "a b" or as ["a", "b"]. Where the merges are those of a
// SentencePiece vocabulary (every split of every piece, in order of score) the scores are recovered
// and Vocab::merges stays empty; otherwise Vocab::merges holds them as listed. Throws Error for
// byte-level BPE and other kinds that are not Llama's.
Vocab parse_tokenizer_json(std::string_view text, std::string_view where);

// Adds what tokenizer_config.json says: chat template, add_bos_token, add_eos_token, special tokens
// by text, added tokens by id.
void apply_tokenizer_config(Vocab& vocab, std::string_view text, std::string_view where);
// The same for added_tokens.json: {"<|im_end|>": 32002, ...}.
void apply_added_tokens(Vocab& vocab, std::string_view text, std::string_view where);
// What a tokenizer.json adds to the vocabulary of the tokenizer.model beside it: added tokens, and
// where the dummy prefix goes when a pre-tokenizer says so. The megabytes of merges are not parsed.
void apply_tokenizer_json_additions(Vocab& vocab, std::string_view text, std::string_view where);

std::string make_tokenizer_json(const Vocab& vocab);
std::string make_tokenizer_config(const Vocab& vocab, int64_t context);
std::string make_special_tokens_map(const Vocab& vocab);

// The merges of a scored vocabulary as transformers' converter lists them: pieces by falling score,
// each with all its splits into two pieces, by ids of the parts.
std::vector<std::pair<TokenId, TokenId>> merges_of_scores(const Vocab& vocab);

}  // namespace tinyllama
