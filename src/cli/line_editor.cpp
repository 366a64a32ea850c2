// Line editing by libedit, see line_editor.h. Characters are read here and not by libedit, since
// only so does Ctrl-C reliably end a read.
#include "cli/line_editor.h"

#include <histedit.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cwchar>
#include <filesystem>

#include "base/error.h"
#include "cli/console.h"

namespace tinyllama::cli {
namespace {

constexpr int kHistoryLines = 1000;

// One byte of standard input: 1 read, 0 at the end, -1 after a signal or an error.
int read_byte(char& byte) {
  while (InterruptGuard::wait_for_input()) {
    const ssize_t n = ::read(STDIN_FILENO, &byte, 1);
    if (n >= 0) return static_cast<int>(n);
    if (errno != EINTR && errno != EAGAIN) return -1;
  }
  return -1;
}

// libedit's character source: assembles one character in the locale's encoding.
int read_character(EditLine* /*editor*/, wchar_t* to) {
  std::mbstate_t state = {};
  char byte = 0;
  for (;;) {
    const int n = read_byte(byte);
    if (n <= 0) return n;
    const size_t length = std::mbrtowc(to, &byte, 1, &state);
    if (length == static_cast<size_t>(-2)) continue;  // more bytes belong to it
    if (length == static_cast<size_t>(-1)) *to = static_cast<unsigned char>(byte);
    return 1;
  }
}

char* prompt(EditLine* editor) {
  static char first[] = "> ", more[] = ". ";
  void* continues = nullptr;
  el_get(editor, EL_CLIENTDATA, &continues);
  return continues != nullptr ? more : first;
}

void use_utf8_locale() {
  std::setlocale(LC_CTYPE, "");
  if (MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");
}

}  // namespace

struct LineEditor::Terminal {
  EditLine* editor = nullptr;
  History* past = nullptr;
  std::string history_path;

  explicit Terminal(std::string path) : history_path(std::move(path)) {
    use_utf8_locale();
    editor = el_init("tinyllama", stdin, stdout, stderr);
    past = history_init();
    if (editor == nullptr || past == nullptr) fail("[chat] the terminal cannot be set up");
    HistEvent event;
    history(past, &event, H_SETSIZE, kHistoryLines);
    history(past, &event, H_SETUNIQUE, 1);
    if (!history_path.empty()) history(past, &event, H_LOAD, history_path.c_str());
    el_set(editor, EL_PROMPT, prompt);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_HIST, history, past);
    el_set(editor, EL_GETCFN, read_character);
    el_set(editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  }
  ~Terminal() {
    if (past != nullptr) history_end(past);
    if (editor != nullptr) el_end(editor);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void remember(const std::string& line) const {
    if (line.empty()) return;
    HistEvent event;
    history(past, &event, H_ENTER, line.c_str());
    if (history_path.empty()) return;
    std::error_code ignored;
    std::filesystem::create_directories(std::filesystem::path(history_path).parent_path(), ignored);
    const mode_t before = ::umask(077);
    history(past, &event, H_SAVE, history_path.c_str());
    ::umask(before);
  }
};

LineEditor::LineEditor(std::string history_path) {
  if (::isatty(STDIN_FILENO) == 1) terminal_ = std::make_unique<Terminal>(std::move(history_path));
}

LineEditor::~LineEditor() = default;

bool LineEditor::interactive() const {
  return terminal_ != nullptr;
}

LineEditor::Result LineEditor::read_one(std::string& line) {
  if (terminal_) {
    int n = 0;
    const char* text = el_gets(terminal_->editor, &n);
    if (InterruptGuard::interrupted()) {
      el_reset(terminal_->editor);
      return Result::interrupted;
    }
    if (text == nullptr || n <= 0) return Result::end;
    line.append(text, static_cast<size_t>(n));
  } else {
    char byte = 0;
    int n = 0;
    while ((n = read_byte(byte)) == 1 && byte != '\n') line += byte;
    if (n < 0) return Result::interrupted;
    if (n == 0 && line.empty()) return Result::end;
  }
  while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
  return Result::line;
}

LineEditor::Result LineEditor::read(std::string& line) {
  line.clear();
  for (bool more = false;; more = true) {
    if (terminal_) el_set(terminal_->editor, EL_CLIENTDATA, more ? this : nullptr);
    std::string part;
    const Result result = read_one(part);
    if (result != Result::line && !(result == Result::end && more)) return result;
    const bool continues = result == Result::line && part.ends_with('\\');
    if (continues) part.back() = '\n';
    line += part;
    if (!continues) break;
  }
  if (terminal_) terminal_->remember(line);
  return Result::line;
}

}  // namespace tinyllama::cli
