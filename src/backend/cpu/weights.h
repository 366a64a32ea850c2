// Packing weights into the tiles of layout.h.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/layout.h"
#include "base/parallel.h"

namespace tinyllama::cpu {

// One dtype's rows of a joined matrix.
struct PackedPart {
  Format format;
  int64_t first_row, rows;
  uint8_t* tiles;  // (ceil(rows / 16)) tiles of tile_bytes(format, cols); missing rows are zero
};

inline int64_t part_tiles(const PackedPart& part) {
  return (part.rows + kTileRows - 1) / kTileRows;
}

class CpuPacked : public Packed {
 public:
  std::vector<PackedPart> parts;  // neighbours of one format are one part
  std::shared_ptr<const Buffer> memory;
};

// Memory for matrices side by side: each in pages of its own would leave an eighth of 1.1B's huge
// pages unused. Pages that nothing touches take no memory.
class WeightArena {
 public:
  // `bytes` zeroed bytes on a cache line; they live as long as `owner`.
  std::byte* take(size_t bytes, std::shared_ptr<const Buffer>& owner);

 private:
  std::shared_ptr<const Buffer> chunk_;
  size_t used_ = 0;
};

std::unique_ptr<CpuPacked> pack_weights(std::span<const PackPart> parts, ThreadPool& pool,
                                        WeightArena& arena);
// Writes the tiles of matrices that have the shapes and types `packed` was made of.
void fill_packed(std::span<const PackPart> parts, ThreadPool& pool, CpuPacked& packed);

}  // namespace tinyllama::cpu
