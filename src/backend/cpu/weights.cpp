#include "backend/cpu/weights.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/scratch.h"
#include "base/error.h"
#include "tensor/quant.h"
#include "tensor/rotary.h"

namespace tinyllama::cpu {
namespace {

using Rows = const std::byte* const (&)[kTileRows];

// Four 32-bit words, in the vector type of the compiler's own: 128 bits are on every architecture.
using Words = uint32_t __attribute__((vector_size(16)));

Words load_words(const void* from) {
  Words value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

void store_words(uint8_t* to, Words value) {
  std::memcpy(to, &value, sizeof(value));
}

// Where one chunk of 16 bytes of each row becomes four vectors of 16 lanes: lane l of vector v is
// word v of row l's chunk.
struct Transposed {
  Words lanes[4][kTileRows / 4];  // [vector][lanes 4i..4i + 3]
};

// The chunks at rows[l] + offset.
inline Transposed transpose(Rows rows, size_t offset) {
  Transposed t;
  for (int i = 0; i < kTileRows / 4; i++) {
    const Words a = load_words(rows[4 * i] + offset), b = load_words(rows[4 * i + 1] + offset);
    const Words c = load_words(rows[4 * i + 2] + offset), d = load_words(rows[4 * i + 3] + offset);
    const Words ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    const Words ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Words cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const Words cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    t.lanes[0][i] = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
    t.lanes[1][i] = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
    t.lanes[2][i] = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
    t.lanes[3][i] = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
  }
  return t;
}

// Stores four vectors of 64 bytes: each(v, i) gives lanes 4i..4i + 3 of vector v.
template <class Each>
inline void put_vectors(uint8_t* to, const Each& each) {
  for (int v = 0; v < 4; v++)
    for (int i = 0; i < kTileRows / 4; i++) store_words(to + v * 64 + i * 16, each(v, i));
}

// 16-bit values, one of each row: those at rows[l] + offset.
inline void put_halves(Rows rows, size_t offset, uint8_t* to) {
  for (int lane = 0; lane < kTileRows; lane++) std::memcpy(to + lane * 2, rows[lane] + offset, 2);
}

// 32-bit elements, or pairs of 16-bit ones: a transpose of words.
void pack_words(Rows rows, int64_t words, uint8_t* to) {
  int64_t k = 0;
  for (; k + 4 <= words; k += 4) {
    const Transposed t = transpose(rows, static_cast<size_t>(k) * 4);
    put_vectors(to + k * 64, [&](int v, int i) { return t.lanes[v][i]; });
  }
  for (; k < words; k++)
    for (int lane = 0; lane < kTileRows; lane++)
      std::memcpy(to + k * 64 + lane * 4, rows[lane] + k * 4, 4);
}

void pack_odd_pair(Rows rows, int64_t cols, uint8_t* to) {
  if (cols % 2 == 0) return;
  for (int lane = 0; lane < kTileRows; lane++)
    std::memcpy(to + cols / 2 * 64 + lane * 4, rows[lane] + (cols - 1) * 2, 2);
}

void pack_f16(Rows rows, int64_t cols, uint8_t* to) {
  for (int64_t k = 0; k < cols; k++) put_halves(rows, static_cast<size_t>(k) * 2, to + k * 32);
}

void pack_q4_0(Rows rows, int64_t cols, uint8_t* to) {
  for (int64_t b = 0; b < cols / kBlock; b++) {
    uint8_t* rec = to + b / 2 * 576;
    const size_t block = static_cast<size_t>(b) * sizeof(BlockQ4_0);
    const Transposed t = transpose(rows, block + offsetof(BlockQ4_0, q));
    put_vectors(rec + b % 2 * 256, [&](int v, int i) { return t.lanes[v][i]; });
    put_halves(rows, block + offsetof(BlockQ4_0, d), rec + 512 + b % 2 * 32);
  }
}

void pack_q8_0(Rows rows, int64_t cols, uint8_t* to) {
  for (int64_t b = 0; b < cols / kBlock; b++) {
    uint8_t* rec = to + b / 2 * 1088;
    const size_t block = static_cast<size_t>(b) * sizeof(BlockQ8_0);
    for (size_t half = 0; half < 2; half++) {
      const Transposed t = transpose(rows, block + offsetof(BlockQ8_0, q) + half * 16);
      put_vectors(rec + b % 2 * 512 + half * 256,
                  [&](int v, int i) { return t.lanes[v][i] ^ 0x80808080u; });
    }
    put_halves(rows, block + offsetof(BlockQ8_0, d), rec + 1024 + b % 2 * 32);
  }
}

void pack_q4_k(Rows rows, int64_t cols, uint8_t* to) {
  for (int64_t s = 0; s < cols / kSuperBlock; s++, to += 2368) {
    const size_t super = static_cast<size_t>(s) * sizeof(BlockQ4_K);
    // 32 bytes hold two blocks: the low nibbles the first, the high ones the second.
    for (size_t pair = 0; pair < 4; pair++) {
      const size_t q = super + offsetof(BlockQ4_K, q) + pair * 32;
      const Transposed a = transpose(rows, q), b = transpose(rows, q + 16);
      put_vectors(to + pair * 512, [&](int v, int i) {
        return (a.lanes[v][i] & 0x0f0f0f0fu) | ((b.lanes[v][i] & 0x0f0f0f0fu) << 4);
      });
      put_vectors(to + pair * 512 + 256, [&](int v, int i) {
        return ((a.lanes[v][i] >> 4) & 0x0f0f0f0fu) | (b.lanes[v][i] & 0xf0f0f0f0u);
      });
    }
    for (int lane = 0; lane < kTileRows; lane++) {
      BlockQ4_K block;
      std::memcpy(&block, rows[lane] + super, sizeof(block));
      for (int b = 0; b < 8; b++)
        q4_k_scale_min(block, b, to[2048 + b * 32 + lane], to[2048 + b * 32 + 16 + lane]);
    }
    put_halves(rows, super + offsetof(BlockQ4_K, d), to + 2304);
    put_halves(rows, super + offsetof(BlockQ4_K, dmin), to + 2336);
  }
}

// The 6-bit values of a block's 256 elements, 0..63, in element order.
void q6_k_values(const BlockQ6_K& block, std::byte* q) {
  for (int half = 0; half < 2; half++) {
    const uint8_t *low = block.ql + half * 64, *high = block.qh + half * 32;
    std::byte* to = q + half * 128;
    for (int i = 0; i < 32; i++) {
      to[i] = static_cast<std::byte>((low[i] & 15) | ((high[i] & 3) << 4));
      to[i + 32] = static_cast<std::byte>((low[i + 32] & 15) | (((high[i] >> 2) & 3) << 4));
      to[i + 64] = static_cast<std::byte>((low[i] >> 4) | (((high[i] >> 4) & 3) << 4));
      to[i + 96] = static_cast<std::byte>((low[i + 32] >> 4) | (((high[i] >> 6) & 3) << 4));
    }
  }
}

void pack_q6_k(Rows rows, int64_t cols, uint8_t* to) {
  for (int64_t s = 0; s < cols / kSuperBlock; s++, to += 3392) {
    const size_t super = static_cast<size_t>(s) * sizeof(BlockQ6_K);
    std::byte values[kTileRows][kSuperBlock];
    const std::byte* value_rows[kTileRows];
    for (int lane = 0; lane < kTileRows; lane++) {
      BlockQ6_K block;
      std::memcpy(&block, rows[lane] + super, sizeof(block));
      q6_k_values(block, values[lane]);
      value_rows[lane] = values[lane];
      for (int b = 0; b < 8; b++) {
        to[3072 + b * 32 + lane] = static_cast<uint8_t>(block.scales[2 * b]);
        to[3072 + b * 32 + 16 + lane] = static_cast<uint8_t>(block.scales[2 * b + 1]);
      }
    }
    for (size_t b = 0; b < 8; b++) {
      const Transposed first = transpose(value_rows, b * 32);        // vectors g = 0..3
      const Transposed second = transpose(value_rows, b * 32 + 16);  // vectors g = 4..7
      put_vectors(to + b * 256, [&](int v, int i) {
        return (first.lanes[v][i] & 0x0f0f0f0fu) | ((second.lanes[v][i] & 0x0f0f0f0fu) << 4);
      });
      for (int i = 0; i < kTileRows / 4; i++) {
        Words low = {}, high = {};
        for (int g = 0; g < 4; g++) {
          low |= ((first.lanes[g][i] >> 4) & 0x03030303u) << (2 * g);
          high |= ((second.lanes[g][i] >> 4) & 0x03030303u) << (2 * g);
        }
        store_words(to + 2048 + b * 128 + i * 16, low);
        store_words(to + 2048 + b * 128 + 64 + i * 16, high);
      }
    }
    put_halves(rows, super + offsetof(BlockQ6_K, d), to + 3328);
  }
}

void pack_tile(Format format, Rows rows, int64_t cols, uint8_t* to) {
  switch (format) {
    case Format::f32:
      return pack_words(rows, cols, to);
    case Format::bf16:
      pack_words(rows, cols / 2, to);
      return pack_odd_pair(rows, cols, to);
    case Format::f16:
      return pack_f16(rows, cols, to);
    case Format::q4_0:
      return pack_q4_0(rows, cols, to);
    case Format::q8_0:
      return pack_q8_0(rows, cols, to);
    case Format::q4_k:
      return pack_q4_k(rows, cols, to);
    case Format::q6_k:
      return pack_q6_k(rows, cols, to);
  }
}

size_t part_bytes(const PackedPart& part, int64_t cols) {
  return static_cast<size_t>(part_tiles(part)) * tile_bytes(part.format, cols);
}

// A zero row decodes to zeros in every format, so that lanes beyond the last row cost nothing to
// explain.
std::vector<std::byte> zero_row(DType dtype, int64_t cols) {
  return std::vector<std::byte>(row_bytes(dtype, cols));
}

}  // namespace

std::byte* WeightArena::take(size_t bytes, std::shared_ptr<const Buffer>& owner) {
  constexpr size_t kChunk = size_t{64} << 20, kLine = 64;
  const size_t size = (bytes + kLine - 1) / kLine * kLine;
  if (chunk_ == nullptr || size > chunk_->size() - used_) {
    chunk_ = std::make_shared<const Buffer>(alloc_host(std::max(size, kChunk)));
    used_ = 0;
  }
  owner = chunk_;
  std::byte* const at = chunk_->data() + used_;
  used_ += size;
  return at;
}

std::unique_ptr<CpuPacked> pack_weights(std::span<const PackPart> parts, ThreadPool& pool,
                                        WeightArena& arena) {
  TL_CHECK(!parts.empty());
  auto packed = std::make_unique<CpuPacked>();
  packed->cols = parts[0].w.cols;
  // Neighbours that share a format become one run of tiles.
  for (const PackPart& part : parts) {
    TL_CHECK(part.w.cols == packed->cols);
    const auto format = static_cast<Format>(part.as.value_or(part.w.dtype));
    const bool joins = !packed->parts.empty() && packed->parts.back().format == format;
    if (!joins) packed->parts.push_back({format, packed->rows, 0, nullptr});
    packed->parts.back().rows += part.w.rows;
    packed->rows += part.w.rows;
  }
  for (const PackedPart& p : packed->parts) packed->bytes += part_bytes(p, packed->cols);
  auto* at = reinterpret_cast<uint8_t*>(arena.take(packed->bytes, packed->memory));
  for (PackedPart& p : packed->parts) {
    p.tiles = at;
    at += part_bytes(p, packed->cols);
  }
  fill_packed(parts, pool, *packed);
  return packed;
}

void fill_packed(std::span<const PackPart> parts, ThreadPool& pool, CpuPacked& packed) {
  struct Source {
    const PackPart* part;
    int64_t row;
  };
  std::vector<Source> sources;  // of each row
  sources.reserve(static_cast<size_t>(packed.rows));
  for (const PackPart& part : parts)
    for (int64_t r = 0; r < part.w.rows; r++) sources.push_back({&part, r});
  TL_CHECK(static_cast<int64_t>(sources.size()) == packed.rows);
  for (const PackedPart& p : packed.parts) {
    const size_t bytes = tile_bytes(p.format, packed.cols);
    const std::vector<std::byte> zero = zero_row(static_cast<DType>(p.format), packed.cols);
    const auto type = static_cast<DType>(p.format);
    const size_t row_size = row_bytes(type, packed.cols);
    std::vector<Scratch> converted(static_cast<size_t>(pool.size()));
    pool.for_each(part_tiles(p), [&](int64_t t, int thread) {
      const std::byte* rows[kTileRows];
      for (int lane = 0; lane < kTileRows; lane++) {
        const int64_t r = t * kTileRows + lane;
        if (r >= p.rows) {
          rows[lane] = zero.data();
          continue;
        }
        const Source& source = sources[static_cast<size_t>(p.first_row + r)];
        const TensorView& w = source.part->w;
        TL_CHECK(source.part->as.value_or(w.dtype) == type && w.cols == packed.cols);
        const int64_t dim = source.part->interleaved_dim;
        rows[lane] = w.row(dim == 0 ? source.row : interleaved_row(source.row, dim));
        if (w.dtype == type) continue;
        TL_CHECK(w.dtype == DType::f32);
        std::byte* to = converted[static_cast<size_t>(thread)].get(row_size * kTileRows) +
                        row_size * static_cast<size_t>(lane);
        encode_row(type, reinterpret_cast<const float*>(rows[lane]), to, w.cols);
        rows[lane] = to;
      }
      pack_tile(p.format, rows, packed.cols, p.tiles + static_cast<size_t>(t) * bytes);
    });
  }
}

}  // namespace tinyllama::cpu
