// Where the shared assets and oracles are: TINYLLAMA_ASSETS, or ../shared beside the repository.
// Tests that need them are skipped, with a word on why, where they are not.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace tinyllama::testing {

inline std::string assets_root() {
  const char* given = std::getenv("TINYLLAMA_ASSETS");
  return given != nullptr ? given : TINYLLAMA_SOURCE_DIR "/../shared";
}

inline std::string asset(const std::string& path) {
  return assets_root() + "/" + path;
}

// A folder that vanishes with its contents.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = std::filesystem::temp_directory_path() / "tinyllama-XXXXXX";
    path_ = mkdtemp(name.data()) != nullptr ? name : "";
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace tinyllama::testing

#define TINYLLAMA_NEEDS_ASSET(path)                                \
  if (!std::filesystem::exists(::tinyllama::testing::asset(path))) \
  GTEST_SKIP() << "no " << ::tinyllama::testing::asset(path) << " (set TINYLLAMA_ASSETS)"
