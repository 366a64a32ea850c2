// The README as a promise: its tree names every file that stands in the folders it opens and
// nothing else, its links lead somewhere, and it shows every subcommand.
#include <gtest/gtest.h>

#include <filesystem>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "base/file.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = TINYLLAMA_SOURCE_DIR;

std::string readme() {
  return read_text_file(kRoot / "README.md");
}

// "vec_{avx2,neon}.h" is two names; "error+" is error.h and error.cpp.
std::vector<std::string> expand(const std::string& name) {
  const size_t open = name.find('{'), close = name.find('}');
  if (open != std::string::npos && close != std::string::npos) {
    std::vector<std::string> names;
    std::istringstream choices(name.substr(open + 1, close - open - 1));
    for (std::string choice; std::getline(choices, choice, ',');)
      for (const std::string& full : expand(name.substr(0, open) + choice + name.substr(close + 1)))
        names.push_back(full);
    return names;
  }
  if (!name.ends_with('+')) return {name};
  const std::string stem = name.substr(0, name.size() - 1);
  return {stem + ".h", stem + ".cpp"};
}

struct Tree {
  std::set<std::string> files, folders;  // paths from the root, folders without the last slash
  std::set<std::string> opened;          // folders of which the tree lists something
};

// The code block after the heading "The tree": two spaces a level, then names, then at least two
// spaces and a description.
Tree parse_tree() {
  const std::string text = readme();
  const size_t begin = text.find("```\n", text.find("## The tree")) + 4;
  std::istringstream lines(text.substr(begin, text.find("```", begin) - begin));
  Tree tree;
  std::vector<std::string> at;  // the folders that lead to the present line
  for (std::string line; std::getline(lines, line);) {
    const size_t indent = line.find_first_not_of(' ');
    if (indent == std::string::npos) continue;
    at.resize(indent / 2);
    const std::string prefix = at.empty() ? "" : at.back() + "/";
    if (!at.empty()) tree.opened.insert(at.back());
    std::istringstream names(line.substr(indent, line.find("  ", indent) - indent));
    for (std::string name; names >> name;) {
      if (name.ends_with('/')) {
        at.push_back(prefix + name.substr(0, name.size() - 1));
        tree.folders.insert(at.back());
        break;
      }
      for (const std::string& file : expand(name)) tree.files.insert(prefix + file);
    }
  }
  return tree;
}

TEST(Docs, TheTreeNamesOnlyWhatExists) {
  const Tree tree = parse_tree();
  EXPECT_GT(tree.files.size(), 50u);
  for (const std::string& file : tree.files)
    EXPECT_TRUE(fs::is_regular_file(kRoot / file)) << "the README's tree names " << file;
  for (const std::string& folder : tree.folders)
    EXPECT_TRUE(fs::is_directory(kRoot / folder)) << "the README's tree names " << folder << "/";
}

TEST(Docs, TheTreeNamesAllThatExists) {
  const Tree tree = parse_tree();
  for (const char* folder : {"src", "tests", "tools", "cmake"})
    EXPECT_TRUE(tree.opened.contains(folder)) << folder;
  for (const std::string& folder : tree.opened) {
    for (const auto& entry : fs::directory_iterator(kRoot / folder)) {
      const std::string name = entry.path().filename();
      if (name == "CMakeLists.txt" || name.starts_with('.')) continue;
      const std::string path = fs::path(folder) / name;
      const auto& listed = entry.is_directory() ? tree.folders : tree.files;
      EXPECT_TRUE(listed.contains(path)) << path << " is not in the README's tree";
    }
  }
}

TEST(Docs, LinksLeadSomewhere) {
  static const std::regex link(R"(\]\(([^)#:]+)\))");
  for (const char* name : {"README.md", "DESIGN.md"}) {
    const std::string text = read_text_file(kRoot / name);
    for (std::sregex_iterator it(text.begin(), text.end(), link), end; it != end; ++it)
      EXPECT_TRUE(fs::exists(kRoot / (*it)[1].str())) << name << ": " << (*it)[1];
  }
}

TEST(Docs, EverySubcommandIsShown) {
  const std::string text = readme(), main = read_text_file(kRoot / "src/cli/main.cpp");
  static const std::regex row(R"re(\{"(\w+)", \w+, ")re");
  int commands = 0;
  for (std::sregex_iterator it(main.begin(), main.end(), row), end; it != end; ++it, commands++)
    EXPECT_NE(text.find("tinyllama " + (*it)[1].str()), std::string::npos) << (*it)[1];
  EXPECT_GE(commands, 10);
  for (const char* command : {"./run", "./test"}) EXPECT_NE(text.find(command), std::string::npos);
}

// Every heading's claim about a file or folder of src/ in DESIGN.md is about one that is there.
TEST(Docs, DesignNamesOnlyWhatExists) {
  static const std::regex path(R"(`((src|tests|tools|fuzz|cmake)/[\w./]+)`)");
  const std::string text = read_text_file(kRoot / "DESIGN.md");
  for (std::sregex_iterator it(text.begin(), text.end(), path), end; it != end; ++it)
    EXPECT_TRUE(fs::exists(kRoot / (*it)[1].str())) << "DESIGN.md: " << (*it)[1];
}

}  // namespace
}  // namespace tinyllama
