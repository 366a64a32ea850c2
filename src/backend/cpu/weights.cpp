#include "backend/cpu/weights.h"

#include <cstring>

#include "base/error.h"
#include "tensor/quant.h"
#include "tensor/rotary.h"

namespace tinyllama::cpu {
namespace {

using Rows = const std::byte* const (&)[kTileRows];

uint32_t word(const void* base, size_t index) {
  uint32_t value;
  std::memcpy(&value, static_cast<const std::byte*>(base) + index * 4, 4);
  return value;
}

void put_word(uint8_t* to, int64_t vector, int lane, uint32_t value) {
  std::memcpy(to + vector * 64 + lane * 4, &value, 4);
}

void put_half(uint8_t* to, int lane, uint16_t value) {
  std::memcpy(to + lane * 2, &value, 2);
}

template <class Block>
Block block_at(const std::byte* row, int64_t index) {
  Block block;
  std::memcpy(&block, row + static_cast<size_t>(index) * sizeof(Block), sizeof(Block));
  return block;
}

// 32-bit elements, or pairs of 16-bit ones: a transpose of words.
void pack_words(Rows rows, int64_t words, uint8_t* to) {
  for (int64_t k = 0; k < words; k++)
    for (int lane = 0; lane < kTileRows; lane++)
      put_word(to, k, lane, word(rows[lane], static_cast<size_t>(k)));
}

void pack_odd_pair(Rows rows, int64_t cols, uint8_t* to) {
  if (cols % 2 == 0) return;
  for (int lane = 0; lane < kTileRows; lane++) {
    uint16_t last;
    std::memcpy(&last, rows[lane] + (cols - 1) * 2, 2);
    put_word(to, cols / 2, lane, last);
  }
}

void pack_f16(Rows rows, int64_t cols, uint8_t* to) {
  for (int64_t k = 0; k < cols; k++) {
    for (int lane = 0; lane < kTileRows; lane++)
      std::memcpy(to + k * 32 + lane * 2, rows[lane] + k * 2, 2);
  }
}

void pack_q4_0(Rows rows, int64_t cols, uint8_t* to) {
  for (int64_t b = 0; b < cols / kBlock; b++) {
    uint8_t* rec = to + b / 2 * 576;
    for (int lane = 0; lane < kTileRows; lane++) {
      const auto block = block_at<BlockQ4_0>(rows[lane], b);
      for (int v = 0; v < 4; v++)
        put_word(rec + b % 2 * 256, v, lane, word(block.q, static_cast<size_t>(v)));
      put_half(rec + 512 + b % 2 * 32, lane, block.d);
    }
  }
}

void pack_q8_0(Rows rows, int64_t cols, uint8_t* to) {
  for (int64_t b = 0; b < cols / kBlock; b++) {
    uint8_t* rec = to + b / 2 * 1088;
    for (int lane = 0; lane < kTileRows; lane++) {
      const auto block = block_at<BlockQ8_0>(rows[lane], b);
      for (int g = 0; g < 8; g++)
        put_word(rec + b % 2 * 512, g, lane, word(block.q, static_cast<size_t>(g)) ^ 0x80808080u);
      put_half(rec + 1024 + b % 2 * 32, lane, block.d);
    }
  }
}

void pack_q4_k(Rows rows, int64_t cols, uint8_t* to) {
  for (int64_t s = 0; s < cols / kSuperBlock; s++, to += 2368) {
    for (int lane = 0; lane < kTileRows; lane++) {
      const auto block = block_at<BlockQ4_K>(rows[lane], s);
      for (int b = 0; b < 8; b++) {
        for (int v = 0; v < 4; v++) {
          const uint32_t low = word(block.q + b / 2 * 32, static_cast<size_t>(v));
          const uint32_t high = word(block.q + b / 2 * 32, static_cast<size_t>(v) + 4);
          const uint32_t packed = b % 2 == 0 ? (low & 0x0f0f0f0fu) | ((high & 0x0f0f0f0fu) << 4)
                                             : ((low >> 4) & 0x0f0f0f0fu) | (high & 0xf0f0f0f0u);
          put_word(to + b * 256, v, lane, packed);
        }
        uint8_t scale = 0, min = 0;
        q4_k_scale_min(block, b, scale, min);
        to[2048 + b * 32 + lane] = scale;
        to[2048 + b * 32 + 16 + lane] = min;
      }
      put_half(to + 2304, lane, block.d);
      put_half(to + 2336, lane, block.dmin);
    }
  }
}

// The 6-bit values of a block's 256 elements, 0..63, in element order.
void q6_k_values(const BlockQ6_K& block, uint8_t* q) {
  for (int half = 0; half < 2; half++) {
    const uint8_t *low = block.ql + half * 64, *high = block.qh + half * 32;
    uint8_t* to = q + half * 128;
    for (int i = 0; i < 32; i++) {
      to[i] = static_cast<uint8_t>((low[i] & 15) | ((high[i] & 3) << 4));
      to[i + 32] = static_cast<uint8_t>((low[i + 32] & 15) | (((high[i] >> 2) & 3) << 4));
      to[i + 64] = static_cast<uint8_t>((low[i] >> 4) | (((high[i] >> 4) & 3) << 4));
      to[i + 96] = static_cast<uint8_t>((low[i + 32] >> 4) | (((high[i] >> 6) & 3) << 4));
    }
  }
}

void pack_q6_k(Rows rows, int64_t cols, uint8_t* to) {
  for (int64_t s = 0; s < cols / kSuperBlock; s++, to += 3392) {
    for (int lane = 0; lane < kTileRows; lane++) {
      const auto block = block_at<BlockQ6_K>(rows[lane], s);
      uint8_t q[kSuperBlock];
      q6_k_values(block, q);
      for (int b = 0; b < 8; b++) {
        uint32_t g[8];
        for (size_t i = 0; i < 8; i++) g[i] = word(q + b * 32, i);
        for (int v = 0; v < 4; v++)
          put_word(to + b * 256, v, lane, (g[v] & 0x0f0f0f0fu) | ((g[v + 4] & 0x0f0f0f0fu) << 4));
        for (int u = 0; u < 2; u++) {
          uint32_t pairs = 0;
          for (int i = 0; i < 4; i++) pairs |= ((g[4 * u + i] >> 4) & 0x03030303u) << (2 * i);
          put_word(to + 2048 + b * 128, u, lane, pairs);
        }
        to[3072 + b * 32 + lane] = static_cast<uint8_t>(block.scales[2 * b]);
        to[3072 + b * 32 + 16 + lane] = static_cast<uint8_t>(block.scales[2 * b + 1]);
      }
      put_half(to + 3328, lane, block.d);
    }
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

// A zero row decodes to zeros in every format, so that lanes beyond the last row cost nothing to
// explain.
std::vector<std::byte> zero_row(DType dtype, int64_t cols) {
  return std::vector<std::byte>(row_bytes(dtype, cols));
}

}  // namespace

std::unique_ptr<CpuPacked> pack_weights(std::span<const PackPart> parts, ThreadPool& pool) {
  TL_CHECK(!parts.empty());
  auto packed = std::make_unique<CpuPacked>();
  packed->cols = parts[0].w.cols;
  // Parts that start on a tile boundary and share a format become one run of tiles.
  struct Source {
    const PackPart* part;
    int64_t row;
  };
  std::vector<std::vector<Source>> sources;  // per packed part, its rows
  for (const PackPart& part : parts) {
    TL_CHECK(part.w.cols == packed->cols);
    const auto format = static_cast<Format>(part.w.dtype);
    const bool joins = !packed->parts.empty() && packed->parts.back().format == format;
    if (!joins) {
      packed->parts.push_back({format, packed->rows, 0, nullptr});
      sources.emplace_back();
    }
    packed->parts.back().rows += part.w.rows;
    packed->rows += part.w.rows;
    for (int64_t r = 0; r < part.w.rows; r++) sources.back().push_back({&part, r});
  }
  size_t total = 0;
  for (const PackedPart& p : packed->parts)
    total += static_cast<size_t>((p.rows + kTileRows - 1) / kTileRows) *
             tile_bytes(p.format, packed->cols);
  packed->memory = alloc_host(total);
  packed->bytes = total;

  auto* at = reinterpret_cast<uint8_t*>(packed->memory.data());
  for (size_t i = 0; i < packed->parts.size(); i++) {
    PackedPart& p = packed->parts[i];
    const size_t bytes = tile_bytes(p.format, packed->cols);
    const int64_t n_tiles = (p.rows + kTileRows - 1) / kTileRows;
    const std::vector<std::byte> zero = zero_row(static_cast<DType>(p.format), packed->cols);
    uint8_t* tiles = at;
    pool.for_ranges(n_tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const std::byte* rows[kTileRows];
        for (int lane = 0; lane < kTileRows; lane++) {
          const int64_t r = t * kTileRows + lane;
          if (r >= p.rows) {
            rows[lane] = zero.data();
            continue;
          }
          const Source& source = sources[i][static_cast<size_t>(r)];
          const int64_t dim = source.part->interleaved_dim;
          rows[lane] = source.part->w.row(dim == 0 ? source.row : interleaved_row(source.row, dim));
        }
        pack_tile(p.format, rows, packed->cols, tiles + static_cast<size_t>(t) * bytes);
      }
    });
    p.tiles = tiles;
    at += static_cast<size_t>(n_tiles) * bytes;
  }
  return packed;
}

}  // namespace tinyllama::cpu
