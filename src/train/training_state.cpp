#include "train/training_state.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/crc32c.h"
#include "base/error.h"

namespace tinyllama {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "states are read in place");

constexpr std::string_view kMagic = "TLSTATE\n";
constexpr uint32_t kVersion = 1;
constexpr size_t kAlignment = 64, kPiece = size_t{1} << 22;
constexpr uint64_t kMaxDescription = uint64_t{64} << 20;

struct Tail {
  uint64_t json_bytes = 0;
  uint32_t json_crc = 0, version = kVersion;
  char magic[8] = {'T', 'L', 'S', 'T', 'A', 'T', 'E', '\n'};
};
static_assert(sizeof(Tail) == 24);

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

void write_training_state(const std::string& path, const TrainingCounters& counters,
                          std::span<const StateArray> arrays, std::span<const StateFile> files) {
  Json json = {{"step", counters.step}, {"position", counters.position}, {"seed", counters.seed},
               {"isa", counters.isa},   {"plan", counters.plan},         {"arrays", Json::array()},
               {"files", Json::array()}};
  AtomicFile file(path);
  file.write(kMagic);
  for (const StateArray& array : arrays) {
    file.pad_to(kAlignment);
    const uint64_t offset = file.position();
    uint32_t crc = 0;
    for (size_t at = 0; at < array.bytes.size(); at += kPiece) {
      const auto piece = array.bytes.subspan(at, std::min(kPiece, array.bytes.size() - at));
      crc = crc32c(piece, crc);
      file.write(piece);
    }
    json["arrays"].push_back(
        {{"name", array.name}, {"offset", offset}, {"bytes", array.bytes.size()}, {"crc32c", crc}});
  }
  for (const StateFile& other : files)
    json["files"].push_back({{"name", other.name}, {"bytes", other.bytes}, {"crc32c", other.crc}});
  const std::string description = json.dump();
  file.write(description);
  const Tail tail{description.size(), crc32c(description)};
  file.write(std::as_bytes(std::span(&tail, 1)));
  file.commit();
}

TrainingState::TrainingState(const std::string& path) : file_(path) {
  const std::span<const std::byte> bytes = file_.bytes();
  Tail tail;
  if (bytes.size() < kMagic.size() + sizeof tail || as_text(bytes.first(kMagic.size())) != kMagic)
    fail(fmt::format("[state] {}: want a training state, got another file or a truncated one",
                     path));
  std::memcpy(&tail, bytes.data() + bytes.size() - sizeof tail, sizeof tail);
  const uint64_t room = bytes.size() - kMagic.size() - sizeof tail;
  if (std::string_view(tail.magic, sizeof tail.magic) != kMagic)
    fail(fmt::format("[state] {}: its end is missing: the file is truncated", path));
  if (tail.version != kVersion)
    fail(fmt::format("[state] {}: want version {}, got {}", path, kVersion, tail.version));
  if (tail.json_bytes > room || tail.json_bytes > kMaxDescription)
    fail(fmt::format("[state] {}: a description of {} bytes in a file of {}: the file is damaged",
                     path, tail.json_bytes, bytes.size()));
  const uint64_t end = bytes.size() - sizeof tail - tail.json_bytes;
  const std::string_view json = as_text(bytes.subspan(end, tail.json_bytes));
  if (crc32c(json) != tail.json_crc)
    fail(fmt::format("[state] {}: the description's checksum does not match: the file is damaged",
                     path));
  read_description(json, end);
}

void TrainingState::read_description(std::string_view text, uint64_t arrays_end) {
  try {
    const Json json = Json::parse(text);
    counters_ = {json.at("step"), json.at("position"), json.at("seed"), json.at("isa"),
                 json.at("plan")};
    for (const Json& array : json.at("arrays")) {
      const std::string name = array.at("name");
      const uint64_t offset = array.at("offset"), size = array.at("bytes");
      if (offset > arrays_end || size > arrays_end - offset)
        fail(fmt::format("[state] {}: {} lies outside of the file: it is damaged", file_.path(),
                         name));
      const auto bytes = file_.bytes().subspan(offset, size);
      if (crc32c(bytes) != array.at("crc32c").get<uint32_t>())
        fail(fmt::format("[state] {}: the checksum of {} does not match: the file is damaged",
                         file_.path(), name));
      arrays_.emplace(name, bytes);
    }
    for (const Json& other : json.at("files"))
      files_.push_back({other.at("name"), other.at("bytes"), other.at("crc32c")});
  } catch (const Json::exception& error) {
    fail(fmt::format("[state] {}: its description is not what this program writes: {}",
                     file_.path(), error.what()));
  }
}

std::span<const std::byte> TrainingState::array(std::string_view name, size_t bytes) const {
  const auto found = arrays_.find(name);
  if (found == arrays_.end()) fail(fmt::format("[state] {}: it has no {}", file_.path(), name));
  if (found->second.size() != bytes)
    fail(fmt::format("[state] {}: {}: want {} bytes, got {}: it is of another model", file_.path(),
                     name, bytes, found->second.size()));
  return found->second;
}

}  // namespace tinyllama
