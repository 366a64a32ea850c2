#include "train/checkpoints.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <utility>

#include "base/crc32c.h"
#include "base/error.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-", kPartial = ".partial";

void check(const std::error_code& code, const std::string& path) {
  if (code) fail(fmt::format("[checkpoint] {}: {}", path, code.message()));
}

// The step that a folder's name tells; nothing for other names. Compared as numbers, step-999 is
// before step-1000.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* const end = name.data() + name.size();
  const auto [at, code] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (code != std::errc() || at != end || step < 0) return std::nullopt;
  return step;
}

// The step of a checkpoint that AtomicFolder moved aside to put another one of the same step in its
// place; one that was killed in between left it there.
std::optional<int64_t> stepped_aside(const std::string& name) {
  const size_t dot = name.find('.'), partial = name.find(kPartial);
  if (dot == std::string::npos || name.substr(partial) != std::string(kPartial) + ".old")
    return std::nullopt;
  return step_of(name.substr(0, dot));
}

// The weight files of a model folder, each with its size and checksum.
std::vector<StateFile> weight_files(const std::string& folder) {
  std::vector<StateFile> files;
  std::error_code code;
  const fs::directory_iterator entries(folder, code);
  check(code, folder);
  for (const auto& entry : entries) {
    if (entry.path().extension() != ".safetensors") continue;
    const MappedFile file(entry.path());
    files.push_back({entry.path().filename(), file.size(), crc32c(file.bytes())});
  }
  return files;
}

void check_weights(const std::string& folder, const std::vector<StateFile>& files) {
  for (const StateFile& want : files) {
    const MappedFile file(folder + "/" + want.name);
    if (file.size() != want.bytes || crc32c(file.bytes()) != want.crc)
      fail(fmt::format("[checkpoint] {}: not as it was saved: the file is damaged", file.path()));
  }
}

void sync_folder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

Checkpoints::Checkpoints(std::string folder, int64_t keep)
    : folder_(std::move(folder)), keep_(keep) {
  TL_CHECK(keep >= 1);
  std::error_code code;
  fs::create_directories(folder_, code);
  check(code, folder_);
  std::vector<fs::path> left;
  const fs::directory_iterator entries(folder_, code);
  check(code, folder_);
  for (const auto& entry : entries) {
    const std::string name = entry.path().filename();
    if ((name.starts_with(kPrefix) || name.starts_with("last.")) &&
        name.find(kPartial) != std::string::npos)
      left.push_back(entry.path());
  }
  for (const fs::path& path : left) {
    if (const auto old = stepped_aside(path.filename()); old && !fs::exists(this->path(*old))) {
      fs::rename(path, this->path(*old), code);
      check(code, path);
      continue;
    }
    fs::remove_all(path, code);
    check(code, path);
  }
}

std::string Checkpoints::path(int64_t step) const {
  return fmt::format("{}/{}{:08}", folder_, kPrefix, step);
}

std::vector<int64_t> Checkpoints::steps() const {
  std::vector<int64_t> found;
  std::error_code code;
  const fs::directory_iterator entries(folder_, code);
  check(code, folder_);
  for (const auto& entry : entries)
    if (const auto step = step_of(entry.path().filename());
        step && entry.is_directory() && entry.path().filename() == fs::path(path(*step)).filename())
      found.push_back(*step);
  std::sort(found.begin(), found.end());
  return found;
}

void Checkpoints::save(const TrainingCounters& counters, std::span<const StateArray> arrays,
                       const std::function<void(const std::string& path)>& write_model) {
  {
    AtomicFolder folder(path(counters.step));
    write_model(folder.path());
    write_training_state(folder.path() + "/" + kStateName, counters, arrays,
                         weight_files(folder.path()));
    folder.commit();
  }
  point_last_to(counters.step);
  std::vector<int64_t> all = steps();
  std::reverse(all.begin(), all.end());
  int64_t kept = 0;
  for (const int64_t step : all)
    if (step > counters.step || ++kept > keep_) remove(step);
}

// The new link replaces the old one in one rename, so that there is one at any moment.
void Checkpoints::point_last_to(int64_t step) const {
  const std::string link = folder_ + "/last", fresh = link + std::string(kPartial);
  std::error_code code;
  fs::remove(fresh, code);
  fs::create_directory_symlink(fs::path(path(step)).filename(), fresh, code);
  check(code, fresh);
  fs::rename(fresh, link, code);
  check(code, link);
  sync_folder(folder_);
}

// Under another name first, so that one that is half removed is never taken for a damaged one.
void Checkpoints::remove(int64_t step) const {
  const std::string old = path(step), going = old + ".removed" + std::string(kPartial);
  std::error_code code;
  fs::rename(old, going, code);
  check(code, old);
  fs::remove_all(going, code);
  check(code, going);
}

std::optional<Checkpoints::Found> Checkpoints::newest(
    const std::function<void(std::string_view)>& warn) const {
  std::vector<int64_t> all = steps();
  std::reverse(all.begin(), all.end());
  for (const int64_t step : all) {
    try {
      const std::string folder = path(step);
      auto state = std::make_unique<TrainingState>(folder + "/" + kStateName);
      if (state->counters().step != step)
        fail(fmt::format("[checkpoint] {}: its state is of step {}", folder,
                         state->counters().step));
      check_weights(folder, state->files());
      return Found{folder, std::move(state)};
    } catch (const Error& error) {
      warn(fmt::format("{}; going back to an older checkpoint", error.what()));
    }
  }
  return std::nullopt;
}

}  // namespace tinyllama
