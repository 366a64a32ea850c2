// The architecture as a test: which layer may include which, that CMake's DEPENDS say the same as
// the includes, and that only cli talks to the outside. A rule is one line of kLayers.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "base/file.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

// Layer -> the layers that it may include. base <- tensor <- {formats, backend} <- model <-
// {infer, train, quantize} <- cli; text stands on base, data on text, train on data too.
const std::map<std::string, Names> kLayers = {
    {"base", {}},
    {"tensor", {"base"}},
    {"text", {"base"}},
    {"formats", {"base", "tensor", "text"}},
    {"backend", {"base", "tensor"}},
    {"model", {"base", "tensor", "formats", "backend"}},
    {"infer", {"base", "tensor", "formats", "backend", "model", "text"}},
    {"quantize", {"base", "tensor", "formats", "backend", "model"}},
    {"data", {"base", "text"}},
    {"train", {"base", "tensor", "formats", "backend", "model", "data"}},
    {"cli",
     {"base", "tensor", "text", "formats", "backend", "model", "infer", "quantize", "data",
      "train"}},
};

// Layer -> the only headers of another layer that it may include, where the whole layer is too
// much.
const std::map<std::string, std::map<std::string, Names>> kOnlyThese = {
    {"formats", {{"text", {"text/vocab.h"}}}},
};

const fs::path kSource = fs::path(TINYLLAMA_SOURCE_DIR) / "src";

struct SourceFile {
  std::string path, layer, text;  // path relative to src/
};

std::vector<SourceFile> sources() {
  std::vector<SourceFile> files;
  for (const auto& entry : fs::recursive_directory_iterator(kSource)) {
    const std::string extension = entry.path().extension();
    if (!entry.is_regular_file() || (extension != ".cpp" && extension != ".h")) continue;
    const fs::path relative = fs::relative(entry.path(), kSource);
    files.push_back({relative, *relative.begin(), read_text_file(entry.path())});
  }
  return files;
}

// The project's own headers that a file includes: "layer/file.h".
std::vector<std::string> own_includes(const SourceFile& file) {
  static const std::regex include("#include \"([^\"]+)\"");
  std::vector<std::string> found;
  for (std::sregex_iterator it(file.text.begin(), file.text.end(), include), end; it != end; ++it)
    found.push_back((*it)[1]);
  return found;
}

std::string layer_of(const std::string& header) {
  return header.substr(0, header.find('/'));
}

std::string why_forbidden(const SourceFile& file, const std::string& header) {
  const std::string target = layer_of(header);
  if (target == file.layer) return "";
  if (!kLayers.at(file.layer).contains(target)) return file.layer + " may not include " + target;
  const auto limited = kOnlyThese.find(file.layer);
  if (limited == kOnlyThese.end() || !limited->second.contains(target)) return "";
  return limited->second.at(target).contains(header) ? "" : "only some headers are allowed here";
}

// Plain data of another layer needs its header only.
bool needs_linking(const SourceFile& file, const std::string& header) {
  const std::string target = layer_of(header);
  const auto limited = kOnlyThese.find(file.layer);
  return target != file.layer && (limited == kOnlyThese.end() || !limited->second.contains(target));
}

TEST(Layering, EveryFolderIsALayer) {
  for (const auto& entry : fs::directory_iterator(kSource)) {
    if (entry.is_directory()) {
      EXPECT_TRUE(kLayers.contains(entry.path().filename())) << entry.path();
    }
  }
}

TEST(Layering, IncludesPointDownwards) {
  ASSERT_GT(sources().size(), 10u);
  for (const SourceFile& file : sources())
    for (const std::string& header : own_includes(file)) {
      EXPECT_TRUE(fs::exists(kSource / header))
          << file.path << ": \"" << header << "\" is not named from src/";
      EXPECT_EQ(why_forbidden(file, header), "") << file.path << " includes " << header;
    }
}

// What cmake links a layer with is exactly what its files include (a layer may reach base through
// another).
TEST(Layering, CMakeDependsAgree) {
  std::map<std::string, Names> used;
  for (const SourceFile& file : sources())
    for (const std::string& header : own_includes(file))
      if (needs_linking(file, header)) used[file.layer].insert(layer_of(header));
  static const std::regex depends("tinyllama_layer\\(\\s*(\\w+)[^)]*?DEPENDS\\s+([a-z\\s]+)");
  static const std::regex word("[a-z]+");
  for (const auto& [layer, allowed] : kLayers) {
    const fs::path lists = kSource / layer / "CMakeLists.txt";
    if (!fs::exists(lists) || layer == "cli") continue;
    const std::string text = read_text_file(lists);
    Names declared;
    std::smatch match;
    if (std::regex_search(text, match, depends)) {
      const std::string list = match[2];
      for (std::sregex_iterator it(list.begin(), list.end(), word), end; it != end; ++it)
        declared.insert(it->str());
    }
    for (const std::string& name : declared)
      EXPECT_TRUE(allowed.contains(name)) << layer << " declares " << name;
    for (const std::string& name : used[layer])
      EXPECT_TRUE(declared.contains(name)) << layer << " includes " << name << " undeclared";
  }
}

// The library neither reads the environment nor writes to the standard streams; that is cli's part.
TEST(Layering, OnlyCliTalksToTheOutside) {
  static const std::regex outside(
      R"(std::(cout|cerr|clog|cin)\b|\b(getenv|setenv|putenv|v?printf|puts|putchar)\s*\(|fmt::print\b|\bstd(in|out|err)\b)");
  for (const SourceFile& file : sources()) {
    if (file.layer == "cli") continue;
    std::smatch match;
    EXPECT_FALSE(std::regex_search(file.text, match, outside)) << file.path << ": " << match.str();
  }
}

// Libraries must not be seen through the core's headers. A header named *_detail.h is for the .cpp
// files of its own layer, so it may.
TEST(Layering, HeadersNeedOnlyTheStandardLibrary) {
  static const std::regex foreign(
      "#include <((fmt|nlohmann|CLI|spdlog|toml\\+\\+)/|simdjson|zlib|zstd|snappy)");
  for (const SourceFile& file : sources()) {
    const bool is_header = file.path.ends_with(".h"), is_detail = file.path.ends_with("_detail.h");
    if (is_header && !is_detail && file.layer != "cli") {
      EXPECT_FALSE(std::regex_search(file.text, foreign)) << file.path;
    }
    for (const std::string& header : own_includes(file)) {
      if (!header.ends_with("_detail.h")) continue;
      EXPECT_FALSE(is_header && !is_detail) << file.path << " includes " << header;
      EXPECT_EQ(layer_of(header), file.layer) << file.path << " includes " << header;
    }
  }
}

}  // namespace
}  // namespace tinyllama
