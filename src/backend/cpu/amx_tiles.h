// What the AMX kernels share: the shapes of the unit's tiles, and order between them and memory.
#pragma once

#include <immintrin.h>

#include "backend/cpu/kernels.h"
#include "backend/cpu/vec.h"

namespace tinyllama::cpu {

namespace amx {
// BlockFn of quantized weights, whose bits are those of AVX-512; null where those are faster.
BlockFn quantized_block(Format format, int64_t n_groups);
}  // namespace amx

namespace {

constexpr int64_t kGroup = 16;  // columns of a full group

// GCC's tile intrinsics do not say that they read and write memory: between them and ordinary
// accesses of the same memory stands this.
TL_INLINE void memory_fence() {
  asm volatile("" : : : "memory");
}

struct TileShape {
  int64_t rows, row_bytes;
};

// Sets the shapes of all tiles while it lives. 0 to 3: sums; 4, 5: activations; 6, 7: weights.
class Tiles {
 public:
  Tiles(TileShape activations, TileShape weights) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int i = 0; i < 8; i++) {
      const TileShape shape = i < 4   ? TileShape{activations.rows, 64}
                              : i < 6 ? activations
                                      : weights;
      shapes.row_bytes[i] = static_cast<uint16_t>(shape.row_bytes);
      shapes.rows[i] = static_cast<uint8_t>(shape.rows);
    }
    asm volatile("" : : "m"(shapes));
    _tile_loadconfig(&shapes);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }
};

}  // namespace
}  // namespace tinyllama::cpu
