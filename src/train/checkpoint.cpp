#include "train/checkpoint.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "formats/safetensors.h"

namespace tinyllama {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::json;

constexpr const char* kState = "training_state.json";  // written last
constexpr const char* kMoments = "training_state.safetensors";
constexpr const char* kPrefix = "step-";

uint32_t checksum(const MappedFile& file) {
  return static_cast<uint32_t>(
      ::crc32_z(0, reinterpret_cast<const Bytef*>(file.bytes().data()), file.size()));
}

// Every file of the folder but the state itself: name -> size and CRC-32.
json file_list(const std::string& folder) {
  json files = json::object();
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (!entry.is_regular_file() || entry.path().filename() == kState) continue;
    const MappedFile file(entry.path().string());
    files[entry.path().filename().string()] = {{"bytes", file.size()}, {"crc32", checksum(file)}};
  }
  return files;
}

void write_moments(const std::string& path, Optimizer& optimizer) {
  std::vector<NamedArray> arrays;
  const auto add = [&](const std::string& prefix, const Parameters& moments) {
    moments.for_each([&](const TensorSpec& spec, Tensor tensor) {
      const auto n = static_cast<size_t>(spec.rows * spec.cols);
      arrays.push_back({prefix + spec.name,
                        {spec.rows, spec.cols},
                        {reinterpret_cast<const float*>(tensor.data), n}});
    });
  };
  add("first_moment.", optimizer.first_moment());
  add("second_moment.", optimizer.second_moment());
  write_safetensors(path, arrays);
}

void read_moments(const std::string& path, Optimizer& optimizer) {
  const Safetensors file = open_safetensors(path);
  const auto fill = [&](const std::string& prefix, const Parameters& moments) {
    moments.for_each([&](const TensorSpec& spec, Tensor tensor) {
      const SafetensorsEntry& entry = file.at(prefix + spec.name);
      const size_t bytes = static_cast<size_t>(spec.rows * spec.cols) * sizeof(float);
      if (entry.dtype != "F32" || entry.data.size() != bytes)
        fail(fmt::format("[resume] {}: {}{}: want {} x {} of F32, got {} bytes of {}", path, prefix,
                         spec.name, spec.rows, spec.cols, entry.data.size(), entry.dtype));
      std::memcpy(tensor.data, entry.data.data(), bytes);
    });
  };
  fill("first_moment.", optimizer.first_moment());
  fill("second_moment.", optimizer.second_moment());
}

json as_json(const RunState& s) {
  return {{"step", s.step}, {"position", s.position},   {"seed", s.seed},
          {"isa", s.isa},   {"precision", s.precision}, {"plan", s.plan}};
}

RunState state_of(const json& j) {
  RunState s;
  j.at("step").get_to(s.step);
  j.at("position").get_to(s.position);
  j.at("seed").get_to(s.seed);
  j.at("isa").get_to(s.isa);
  j.at("precision").get_to(s.precision);
  j.at("plan").get_to(s.plan);
  return s;
}

// Throws Error unless every file that the state lists is there as it was written.
RunState check(const std::string& folder) {
  const std::string path = folder + "/" + kState;
  const json j = json::parse(read_text_file(path), nullptr, false);
  try {
    for (const auto& [name, want] : j.at("files").items()) {
      const MappedFile file(folder + "/" + name);
      if (file.size() != want.at("bytes").get<uint64_t>() ||
          checksum(file) != want.at("crc32").get<uint32_t>())
        fail(fmt::format("[resume] {}/{}: size or checksum differs from {}", folder, name, kState));
    }
    return state_of(j);
  } catch (const json::exception& e) {
    fail(fmt::format("[resume] {}: {}", path, e.what()));
  }
}

// Folders of whole checkpoints and others of that name, the newest first.
std::vector<std::string> checkpoints(const std::string& dir) {
  std::vector<std::string> names;
  std::error_code missing;
  for (const auto& entry : fs::directory_iterator(dir, missing)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_directory() && !entry.is_symlink() && name.starts_with(kPrefix) &&
        name.find_first_not_of("0123456789", std::strlen(kPrefix)) == std::string::npos)
      names.push_back(name);
  }
  std::sort(names.rbegin(), names.rend());
  return names;
}

void point_last_at(const std::string& dir, const std::string& name) {
  const std::string temporary = dir + "/.last.tmp", link = dir + "/last";
  std::error_code code;
  fs::remove(temporary, code);
  fs::create_directory_symlink(name, temporary, code);
  if (!code) fs::rename(temporary, link, code);
  if (code) fail(fmt::format("[checkpoint] {}: {}", link, code.message()));
}

}  // namespace

std::string checkpoint_name(int64_t step) {
  return fmt::format("{}{:08}", kPrefix, step);
}

void save_checkpoint(const std::string& dir, const RunState& state, const Checkpoint& like,
                     const Parameters& weights, Optimizer& optimizer, int64_t keep,
                     ThreadPool& pool) {
  const std::string name = checkpoint_name(state.step);
  AtomicFolder folder(dir + "/" + name);
  Checkpoint model = weights.checkpoint();
  model.vocab = like.vocab;
  model.generation = like.generation;
  write_hf_folder(model, folder.path(), DType::f32, pool, nullptr);
  write_moments(folder.path() + "/" + kMoments, optimizer);
  json j = as_json(state);
  j["files"] = file_list(folder.path());
  AtomicFile file(folder.path() + "/" + kState);
  file.write(j.dump(1) + "\n");
  file.commit();
  folder.commit();
  point_last_at(dir, name);
  const std::vector<std::string> names = checkpoints(dir);
  for (size_t i = static_cast<size_t>(std::max<int64_t>(1, keep)); i < names.size(); i++)
    fs::remove_all(dir + "/" + names[i]);
}

std::optional<RunState> load_checkpoint(const std::string& dir, Parameters& weights,
                                        Optimizer& optimizer,
                                        const std::function<void(const std::string&)>& warn) {
  for (const std::string& name : checkpoints(dir)) {
    const std::string folder = dir + "/" + name;
    try {
      const RunState state = check(folder);
      weights.read(open_checkpoint(folder));
      read_moments(folder + "/" + kMoments, optimizer);
      optimizer.set_steps(state.step);
      return state;
    } catch (const Error& e) {
      warn(fmt::format("{} is passed over: {}", folder, e.what()));
    }
  }
  return std::nullopt;
}

}  // namespace tinyllama
