// The built-in chat formats. Each is a function from a conversation to spans of text and special
// tokens; encoding and display are the same for all.
#include "text/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>

#include "base/error.h"
#include "text/utf8.h"

namespace tinyllama {

// Text, or one special token with its text.
struct ChatTemplate::Span {
  std::string text;
  TokenId id = kNoToken;
};

namespace {

constexpr std::array<std::string_view, 5> kNames = {"plain", "zephyr", "chatml", "llama-2",
                                                    "human-assistant"};
constexpr std::string_view kImStart = "<|im_start|>", kImEnd = "<|im_end|>";

// What Python's str.strip() removes.
bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::string_view strip(std::string_view text) {
  size_t begin = text.size(), end = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text.substr(at));
    const size_t next = at + static_cast<size_t>(c.length);
    if (!is_space(c.code)) {
      begin = std::min(begin, at);
      end = next;
    }
    at = next;
  }
  return begin < end ? text.substr(begin, end - begin) : std::string_view();
}

void check_roles(ChatFormat format, std::span<const ChatMessage> messages,
                 bool add_generation_prompt) {
  if (messages.empty()) fail("[chat] the conversation has no messages");
  const bool alternates = format == ChatFormat::llama2;
  std::string_view expected = "user";
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      fail(fmt::format("[chat] message {}: want role system, user or assistant, got \"{}\"", i,
                       to_valid_utf8(role)));
    }
    if (role == "system") {
      if (i > 0) fail(fmt::format("[chat] message {}: a system message can only be the first", i));
      continue;
    }
    if (alternates && role != expected) {
      fail(
          fmt::format("[chat] message {}: want role {}, got {}; in the llama-2 format user and "
                      "assistant take turns",
                      i, expected, role));
    }
    expected = role == "user" ? "assistant" : "user";
  }
  const std::string& last = messages.back().role;
  if (add_generation_prompt && last == "assistant") {
    fail("[chat] the last message is the assistant's: there is nothing to answer");
  }
  if (alternates && last == "system") {
    fail("[chat] the llama-2 format has no system message without a user message after it");
  }
}

}  // namespace

ChatTemplate::ChatTemplate(ChatFormat format) : format_(format) {}

ChatTemplate ChatTemplate::named(std::string_view name) {
  const auto* const found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) {
    fail(fmt::format("[chat] no chat format \"{}\"; there are {}", to_valid_utf8(name),
                     fmt::join(kNames, ", ")));
  }
  return {static_cast<ChatFormat>(found - kNames.begin())};
}

std::string_view ChatTemplate::name() const {
  return kNames[static_cast<size_t>(format_)];
}

std::span<const std::string_view> chat_format_names() {
  return kNames;
}

std::vector<ChatTemplate::Span> ChatTemplate::spans(const Tokenizer& tokenizer,
                                                    std::span<const ChatMessage> messages,
                                                    bool add_generation_prompt) const {
  check_roles(format_, messages, add_generation_prompt);
  const Vocab& vocab = tokenizer.vocab();
  std::vector<Span> spans;
  const auto text = [&](std::string_view part) {
    if (spans.empty() || spans.back().id != kNoToken) spans.emplace_back();
    spans.back().text += part;
  };
  const auto special = [&](TokenId id, std::string_view fallback) {
    if (id == kNoToken) return text(fallback);
    spans.push_back({tokenizer.piece(id), id});
  };
  const auto marker = [&](std::string_view piece) {
    special(tokenizer.id_of(piece).value_or(kNoToken), piece);
  };

  std::string system;  // of llama-2, where it stands inside the first user turn
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    switch (format_) {
      case ChatFormat::plain:
        if (i > 0) text("\n");
        text(content);
        break;
      case ChatFormat::zephyr:
        text("<|" + role + "|>\n");
        text(content);
        special(vocab.eos, "</s>");
        text("\n");
        break;
      case ChatFormat::chatml:
        marker(kImStart);
        text(role + "\n");
        text(content);
        marker(kImEnd);
        text("\n");
        break;
      case ChatFormat::llama2:
        if (role == "system") {
          system = "<<SYS>>\n" + content + "\n<</SYS>>\n\n";
        } else if (role == "user") {
          special(vocab.bos, "<s>");
          text("[INST] ");
          text(strip(system + content));
          text(" [/INST]");
          system.clear();
        } else {
          text(" ");
          text(strip(content));
          text(" ");
          special(vocab.eos, "</s>");
        }
        break;
      case ChatFormat::human_assistant:  // it knows no system turn: such text goes before the first
        if (role == "system") {
          text(content + "\n");
        } else {
          text(role == "user" ? "### Human: " : "### Assistant: ");
          text(content);
        }
        break;
    }
  }
  if (add_generation_prompt) {
    if (format_ == ChatFormat::zephyr) text("<|assistant|>\n");
    if (format_ == ChatFormat::human_assistant) text("### Assistant:");
    if (format_ == ChatFormat::chatml) {
      marker(kImStart);
      text("assistant\n");
    }
  }
  return spans;
}

std::vector<TokenId> ChatTemplate::encode(const Tokenizer& tokenizer,
                                          std::span<const ChatMessage> messages,
                                          bool add_generation_prompt) const {
  const Vocab& vocab = tokenizer.vocab();
  EncodeScratch scratch;
  EncodeOptions options;
  options.untrusted = true;
  std::vector<TokenId> ids;
  if (vocab.add_bos && vocab.bos != kNoToken) ids.push_back(vocab.bos);
  options.add_dummy_prefix = vocab.add_dummy_prefix;
  for (const Span& span : spans(tokenizer, messages, add_generation_prompt)) {
    if (span.id == kNoToken) {
      tokenizer.encode(span.text, options, scratch, ids);
      continue;
    }
    const bool repeats_bos = span.id == vocab.bos && ids.size() == 1 && ids[0] == vocab.bos;
    if (!repeats_bos) ids.push_back(span.id);
    options.add_dummy_prefix = vocab.add_dummy_prefix && vocab.prefix_after_special;
  }
  return ids;
}

std::string ChatTemplate::render(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                                 bool add_generation_prompt) const {
  std::string text;
  for (const Span& span : spans(tokenizer, messages, add_generation_prompt)) text += span.text;
  return text;
}

ChatStops ChatTemplate::stops(const Tokenizer& tokenizer) const {
  const Vocab& vocab = tokenizer.vocab();
  ChatStops stops;
  const auto add = [&](TokenId id) {
    const bool known = std::find(stops.ids.begin(), stops.ids.end(), id) != stops.ids.end();
    if (id != kNoToken && !known) stops.ids.push_back(id);
  };
  add(vocab.eos);
  for (const TokenId id : vocab.extra_eos) add(id);
  switch (format_) {
    case ChatFormat::plain:
      break;
    case ChatFormat::zephyr:
      stops.strings = {"<|user|>"};
      break;
    case ChatFormat::chatml:
      add(tokenizer.id_of(kImEnd).value_or(kNoToken));
      add(tokenizer.id_of(kImStart).value_or(kNoToken));
      stops.strings = {std::string(kImEnd), std::string(kImStart)};
      break;
    case ChatFormat::llama2:
      stops.strings = {"[INST]"};
      break;
    case ChatFormat::human_assistant:
      stops.strings = {"### Human:", "### Assistant:"};
      break;
  }
  return stops;
}

bool ChatTemplate::answer_starts_with_space() const {
  return format_ == ChatFormat::llama2 || format_ == ChatFormat::human_assistant;
}

namespace {

std::optional<ChatFormat> format_of_source(std::string_view source) {
  const auto has = [&](std::string_view part) {
    return source.find(part) != std::string_view::npos;
  };
  if (has(kImStart)) return ChatFormat::chatml;
  // Others write <|user|> too, but end turns with a token of their own.
  if (has("<|user|>") && has("<|assistant|>")) {
    return has("<|end|>") ? std::nullopt : std::optional(ChatFormat::zephyr);
  }
  if (has("[INST]")) return ChatFormat::llama2;
  if (has("### Human:")) return ChatFormat::human_assistant;
  return std::nullopt;
}

std::optional<ChatFormat> format_of_name(std::string_view model_name) {
  std::string name(model_name);
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const auto has = [&](std::string_view part) { return name.find(part) != std::string::npos; };
  if (!has("chat")) return std::nullopt;
  if (has("tinyllama")) {
    if (has("v0.1")) return ChatFormat::human_assistant;
    if (has("v0.2") || has("v0.3") || has("v0.4")) return ChatFormat::chatml;
    if (has("v0.6") || has("v1.0")) return ChatFormat::zephyr;
  }
  if (has("llama-2")) return ChatFormat::llama2;
  return std::nullopt;
}

}  // namespace

ChatFormat detect_chat_format(const Vocab& vocab, std::string_view model_name) {
  if (!vocab.chat_template.empty()) {
    return format_of_source(vocab.chat_template).value_or(ChatFormat::plain);
  }
  const auto has_piece = [&](std::string_view text) {
    return std::any_of(vocab.pieces.begin(), vocab.pieces.end(),
                       [&](const Piece& piece) { return piece.text == text; });
  };
  if (has_piece(kImStart) && has_piece(kImEnd)) return ChatFormat::chatml;
  if (has_piece("<|user|>") && has_piece("<|assistant|>")) return ChatFormat::zephyr;
  return format_of_name(model_name).value_or(ChatFormat::plain);
}

}  // namespace tinyllama
