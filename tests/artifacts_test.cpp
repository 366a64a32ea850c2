// What the compiler made, looked at from outside: the core library needs nothing but the C++
// runtime and threads, and no kernel compiled for a newer processor can leak into the rest of the
// program.
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "base/file.h"

namespace tinyllama {
namespace {

std::string output_of(const std::string& command) {
  const auto close = [](std::FILE* file) { ::pclose(file); };
  const std::unique_ptr<std::FILE, decltype(close)> pipe(::popen(command.c_str(), "r"), close);
  std::string text;
  char buffer[4096];
  while (pipe && std::fgets(buffer, sizeof buffer, pipe.get()) != nullptr) text += buffer;
  return text;
}

// core_only is an empty main() with every object of the core layers linked in.
TEST(Core, NeedsOnlyTheRuntimeAndThreads) {
  static const std::regex needed(R"(\(NEEDED\)[^\[]*\[([^\]]+)\])");
  static const std::regex allowed(
      R"((libstdc\+\+|libc\+\+|libm|libgcc_s|libc|libpthread|ld-linux).*)");
  const std::string text = output_of("readelf -d " TINYLLAMA_BINARY_DIR "/tests/core_only");
  int n = 0;
  for (std::sregex_iterator it(text.begin(), text.end(), needed), end; it != end; ++it, n++)
    EXPECT_TRUE(std::regex_match((*it)[1].str(), allowed)) << (*it)[1];
  EXPECT_GE(n, 2) << text;
  EXPECT_GT(
      std::stol(output_of("nm -C " TINYLLAMA_BINARY_DIR "/tests/core_only | grep -c tinyllama::")),
      500);
}

struct KernelObject {
  std::string isa, path;
};

// Written by tests/CMakeLists.txt: "avx2 path/of/matmul.cpp.o" and so on.
std::vector<KernelObject> kernel_objects() {
  std::istringstream lines(read_text_file(TINYLLAMA_BINARY_DIR "/tests/kernel_objects.txt"));
  std::vector<KernelObject> objects;
  for (KernelObject object; lines >> object.isa >> object.path;) objects.push_back(object);
  return objects;
}

// A weak symbol (an inline function, a template) may be taken from any object for the whole
// program; from an object compiled for AVX-512 it would crash elsewhere. So kernels define strong
// symbols only, with the instruction set in their names.
TEST(Kernels, ExportOnlyWhatNamesTheirInstructionSet) {
  std::set<std::string> isas;
  for (const KernelObject& object : kernel_objects()) {
    isas.insert(object.isa);
    std::istringstream lines(output_of("nm --defined-only --extern-only " + object.path));
    std::string address, type, name;
    while (lines >> address >> type >> name) {
      EXPECT_EQ(std::string("WVuwv").find(type), std::string::npos)
          << object.path << ": weak " << name;
      EXPECT_NE(name.find(object.isa), std::string::npos) << object.path << ": " << name;
    }
  }
  EXPECT_TRUE(isas.contains("scalar"));
}

// What kernels call: each other, those they build on, and C functions that exist in one copy.
TEST(Kernels, CallOnlyTheirOwnAndTheCLibrary) {
  static const std::set<std::string> c_library = {"memcpy", "memset", "memmove",
                                                  "sqrt",   "sqrtf",  "_GLOBAL_OFFSET_TABLE_"};
  for (const KernelObject& object : kernel_objects()) {
    std::istringstream lines(output_of("nm --undefined-only " + object.path));
    std::string type, name;
    const std::string base = object.isa == "amx" ? "avx512" : object.isa;
    while (lines >> type >> name)
      EXPECT_TRUE(c_library.contains(name) || name.find(object.isa) != std::string::npos ||
                  name.find(base) != std::string::npos)
          << object.path << ": " << name;
  }
}

}  // namespace
}  // namespace tinyllama
