// The part of a training checkpoint that a model folder has no place for: counters and named arrays
// (master weights, moments), in one file with checksums.
//
// The file is "TLSTATE\n", the arrays, each at a multiple of 64 bytes, a JSON object that describes
// them, and 24 bytes: u64 length of the JSON, u32 its CRC-32C, u32 version (1), "TLSTATE\n". Little
// endian. The description comes last so that checksums are made while the arrays pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace tinyllama {

struct TrainingCounters {
  int64_t step = 0;       // optimizer steps done
  uint64_t position = 0;  // Loader::position() of the next step
  uint64_t seed = 0;
  std::string isa = {};   // the instruction set, on which bits depend
  std::string plan = {};  // what else must be the same on resume, as the trainer writes it

  bool operator==(const TrainingCounters&) const = default;
};

struct StateArray {
  std::string name;
  std::span<const std::byte> bytes;
};

// Another file of the checkpoint's folder, as it was when the state was written.
struct StateFile {
  std::string name;
  uint64_t bytes = 0;
  uint32_t crc = 0;
};

// Writes the file, whole or not at all.
void write_training_state(const std::string& path, const TrainingCounters& counters,
                          std::span<const StateArray> arrays, std::span<const StateFile> files);

// A state over its mapped file.
class TrainingState {
 public:
  // Opens and checks all of it, checksums included. Throws Error with what is wrong.
  explicit TrainingState(const std::string& path);

  const TrainingCounters& counters() const { return counters_; }
  const std::vector<StateFile>& files() const { return files_; }
  // Throws Error when there is no array of this name and size.
  std::span<const std::byte> array(std::string_view name, size_t bytes) const;

 private:
  void read_description(std::string_view text, uint64_t arrays_end);

  MappedFile file_;
  TrainingCounters counters_;
  std::vector<StateFile> files_;
  std::map<std::string, std::span<const std::byte>, std::less<>> arrays_;
};

}  // namespace tinyllama
