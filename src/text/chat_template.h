// Conversations to token ids in the formats that TinyLlama's and Llama 2's chat models were trained
// on. Turn markers become ids directly and messages are encoded as plain text, so what a user
// writes can never become a control token.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace tinyllama {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

enum class ChatFormat {
  plain,            // the messages' text, nothing around it: base models
  zephyr,           // TinyLlama-1.1B-Chat-v0.6 and v1.0
  chatml,           // TinyLlama-1.1B-Chat-v0.2 to v0.4
  llama2,           // Llama-2-chat: [INST] <<SYS>>
  human_assistant,  // TinyLlama-1.1B-Chat-v0.1: "### Human: ...### Assistant: ..."
};

// What ends the assistant's turn, besides the limit on its length.
struct ChatStops {
  std::vector<TokenId> ids;
  std::vector<std::string> strings;  // for models that write the next turn's marker as text
};

// A built-in format, applied. (Templates in Jinja can join it here: whatever renders a conversation
// into text and special tokens can stand behind encode() and render().)
//
// How it is encoded, and why. Special tokens become ids; the text between two of them, markers and
// messages together, is encoded in one piece, for that is what Hugging Face's tokenizers do with
// the rendered template, and so what the models saw in training. Text after a special token starts
// with the dummy prefix where Vocab::prefix_after_special says so: with TinyLlama's own
// tokenizer.json ("Prepend") the newline after a Zephyr turn's </s> is the two ids 29871 13, and
// llama.cpp does the same. A conversation starts with bos where Vocab::add_bos says so, as in
// training and in llama.cpp (apply_chat_template alone leaves it out). So encode() gives the ids of
// render()'s text with special tokens parsed and bos added, if no message contains special tokens.
class ChatTemplate {
 public:
  ChatTemplate(ChatFormat format);  // NOLINT(google-explicit-constructor): a format is a template
  // By the name that --chat-template takes; throws Error naming the known ones.
  static ChatTemplate named(std::string_view name);

  ChatFormat format() const { return format_; }
  std::string_view name() const;

  // The conversation as the model shall see it; with `add_generation_prompt` it ends where the
  // assistant's answer begins. Throws Error when roles are unknown or in an order the format cannot
  // express.
  std::vector<TokenId> encode(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                              bool add_generation_prompt = true) const;
  // The same as text, for display: what Hugging Face's template renders (bos only where its text
  // has it).
  std::string render(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                     bool add_generation_prompt = true) const;

  ChatStops stops(const Tokenizer& tokenizer) const;

  // Whether the answer's text starts with a space that is the format's own and not the answer's.
  bool answer_starts_with_space() const;

 private:
  struct Span;
  std::vector<Span> spans(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                          bool add_generation_prompt) const;

  ChatFormat format_;
};

// The names that --chat-template takes: "plain", "zephyr", "chatml", "llama-2", "human-assistant".
std::span<const std::string_view> chat_format_names();

// The format a model was trained on: from the markers in its template's source, else from the turn
// markers in its vocabulary, else from its name (`model_name`, e.g. "TinyLlama-1.1B-Chat-v0.1").
// `plain` when nothing tells; a template that is not one of the built-in formats is `plain` too.
ChatFormat detect_chat_format(const Vocab& vocab, std::string_view model_name = {});

}  // namespace tinyllama
