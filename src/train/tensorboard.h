// Event files that TensorBoard shows: scalars over steps. A file is a row of records (u64 length,
// masked CRC-32C of it, bytes, masked CRC-32C of them), each an Event in protobuf's wire format.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/append_file.h"

namespace tinyllama {

class EventFile {
 public:
  // Makes a new file in `folder` (which is made too). A run that goes on after `last_step` > 0 says
  // so, and TensorBoard forgets what earlier files have of later steps.
  EventFile(const std::string& folder, int64_t last_step);

  const std::string& path() const { return path_; }
  // The scalars of one step: (tag, value), such as ("train/loss", 2.5).
  void write(int64_t step, const std::vector<std::pair<std::string_view, double>>& scalars);

 private:
  void append_event(std::string_view fields);

  std::string path_;
  std::unique_ptr<AppendFile> file_;
};

}  // namespace tinyllama
