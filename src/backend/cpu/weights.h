// Packing weights into the tiles of layout.h.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/cpu/layout.h"
#include "base/parallel.h"

namespace tinyllama::cpu {

// One dtype's rows of a joined matrix.
struct PackedPart {
  Format format;
  int64_t first_row, rows;
  const uint8_t*
      tiles;  // (ceil(rows / 16)) tiles of tile_bytes(format, cols); missing rows are zero
};

class CpuPacked : public Packed {
 public:
  std::vector<PackedPart> parts;  // neighbours of one format are one part
  Buffer memory;
};

std::unique_ptr<CpuPacked> pack_weights(std::span<const PackPart> parts, ThreadPool& pool);

}  // namespace tinyllama::cpu
