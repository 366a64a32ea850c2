// Quantized products of many columns by AMX's integer units. A block's dot products are exact, and
// what turns them into FP32 is the decoder's own finish(), block after block: the bits are those of
// AVX-512, at less than two thirds of the time.
//
// One instruction multiplies a block's 32 k of 16 columns with those of 16 rows. Integer and FP32
// work share ports and do not overlap, so they take turns over kChunk blocks of two weight tiles,
// whose unpacked bytes, activations and dot products fit into L1 together.
#include "backend/cpu/amx_tiles.h"
#include "backend/cpu/decode.h"

namespace tinyllama::cpu {
namespace {

constexpr int64_t kChunk = 8;          // blocks
constexpr int64_t kGroupsAtOnce = 16;  // their sums stay in L2

template <class D>
struct UnpackedBlock {
  I q[8];  // signed
  typename D::Scale scale;
};
using Dots = int32_t[kChunk][kGroup][kLanes];
using Sums = float[kGroup][kLanes];

// Everything about the activations of one group in one chunk: kChunk blocks as pack_columns() made
// them.
template <class D>
struct GroupChunk {
  static constexpr int64_t kBlockBytes = kGroup * kColumnBlockBytes<D>;
  static constexpr int64_t kScales = kGroup * (32 + 4 * D::kStarts);  // where a block's begin
  const uint8_t* blocks;

  TL_MEMBER const uint8_t* block(int64_t i) const { return blocks + i * kBlockBytes; }
  TL_MEMBER const uint8_t* scales(int64_t i) const { return block(i) + kScales; }
};

template <class D, Format format>
TL_INLINE void unpack_chunk(const uint8_t* w, int64_t from, int64_t n, UnpackedBlock<D>* to) {
  for (int64_t i = 0; i < n; i++) {
    const int b = static_cast<int>((from + i) % D::kBlocks);
    const uint8_t* rec = w + static_cast<size_t>((from + i) / D::kBlocks) * record(format).bytes;
    if (b == 0) {  // the chunk to come
      for (size_t at = 0; at < record(format).bytes; at += 64)
        prefetch_far(rec + kChunk / D::kBlocks * record(format).bytes + at);
    }
    D::unpack(rec, b, 0, to[i].q);
    for (int g = 0; g < 8; g++)
      to[i].q[g] = _mm512_sub_epi8(to[i].q[g], _mm512_set1_epi8(static_cast<char>(D::kOffset)));
    to[i].scale = D::scale(rec, b, 0);
  }
}

// Dot products of two weight tiles with a group, n blocks (even) of them.
template <class D>
TL_INLINE void dot_products(const UnpackedBlock<D>* w0, const UnpackedBlock<D>* w1,
                            const GroupChunk<D>& x, int64_t n, Dots& dots0, Dots& dots1) {
  memory_fence();
  for (int64_t i = 0; i < n; i += 2) {
    _tile_loadd(4, x.block(i), 32);
    _tile_loadd(6, w0[i].q, 64);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, w1[i].q, 64);
    _tile_zero(1);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, x.block(i + 1), 32);
    _tile_loadd(6, w0[i + 1].q, 64);
    _tile_zero(2);
    _tile_dpbssd(2, 5, 6);
    _tile_loadd(7, w1[i + 1].q, 64);
    _tile_zero(3);
    _tile_dpbssd(3, 5, 7);
    _tile_stored(0, dots0[i], 64);
    _tile_stored(1, dots1[i], 64);
    _tile_stored(2, dots0[i + 1], 64);
    _tile_stored(3, dots1[i + 1], 64);
  }
  memory_fence();
}

// Adds n blocks' dot products to the sums of one weight tile and one group. Meanwhile the bytes of
// the next group are fetched: `ahead` a block.
template <class D>
TL_INLINE void add_blocks(const UnpackedBlock<D>* w, const GroupChunk<D>& x, int64_t n,
                          const Dots& dots, bool first, Sums& sums, const uint8_t* ahead) {
  F acc[kGroup];
  TL_UNROLL(16)
  for (int c = 0; c < kGroup; c++) acc[c] = first ? set_f(0) : load_f(sums[c]);
  for (int64_t i = 0; i < n; i++) {
    for (int64_t at = 0; at < x.kBlockBytes / kTilesPerBlock; at += 64)
      prefetch_near(ahead + i * x.kBlockBytes + at);
    TL_UNROLL(16)
    for (int c = 0; c < kGroup; c++) {
      const I dot[1] = {load_i(dots[i][c])};
      const float sum = D::kHasMin ? load_scalar_f32(x.scales(i) + (kGroup + c) * 4) : 0.0f;
      acc[c] = D::finish(acc[c], dot, w[i].scale, load_scalar_f32(x.scales(i) + c * 4), sum);
    }
  }
  TL_UNROLL(16)
  for (int c = 0; c < kGroup; c++) store_f(sums[c], acc[c]);
}

// BlockFn.
template <class D, Format format>
void block_product(const uint8_t* w, int64_t n_tiles, const uint8_t* x, int64_t n_groups,
                   int64_t cols, float* out, int64_t ldo, bool accumulate) {
  static_assert(D::kStarts < 2 && D::kBlocks % 2 == 0 && kChunk % D::kBlocks == 0);
  UnpackedBlock<D> strips[kTilesPerBlock][kChunk];
  alignas(64) Dots dots[2];
  alignas(64) Sums sums[kGroupsAtOnce][kTilesPerBlock];
  const int64_t blocks = records(format, cols) * D::kBlocks;
  const int64_t group_bytes = blocks * GroupChunk<D>::kBlockBytes;
  const Tiles tiles({kGroup, 32}, {8, 64});
  for (; n_groups > 0; n_groups -= kGroupsAtOnce) {
    const int64_t groups = n_groups < kGroupsAtOnce ? n_groups : kGroupsAtOnce;
    for (int64_t from = 0; from < blocks; from += kChunk) {
      const int64_t n = blocks - from < kChunk ? blocks - from : kChunk;
      for (int64_t t = 0; t < n_tiles; t++)
        unpack_chunk<D, format>(w + static_cast<size_t>(t) * tile_bytes(format, cols), from, n,
                                strips[t]);
      for (int64_t g = 0; g < groups; g++) {
        const GroupChunk<D> chunk = {x + g * group_bytes + from * GroupChunk<D>::kBlockBytes};
        for (int64_t t = 0; t < n_tiles; t += 2) {
          const int64_t pair = n_tiles - t < 2 ? 1 : 2;
          dot_products(strips[t], strips[t + pair - 1], chunk, n, dots[0], dots[pair - 1]);
          for (int64_t i = 0; i < pair; i++) {
            const uint8_t* quarter =
                chunk.blocks + group_bytes + (t + i) * GroupChunk<D>::kBlockBytes / kTilesPerBlock;
            add_blocks(strips[t + i], chunk, n, dots[i], from == 0, sums[g][t + i], quarter);
          }
        }
      }
    }
    for (int64_t g = 0; g < groups; g++) {
      for (int64_t c = 0; c < kGroup; c++, out += ldo) {
        for (int64_t t = 0; t < n_tiles; t++) {
          float* to = out + t * kTileRows;
          const F sum = load_f(sums[g][t][c]);
          store_f(to, accumulate ? add_f(load_f(to), sum) : sum);
        }
      }
    }
    x += groups * group_bytes;
  }
}

}  // namespace

BlockFn amx::quantized_block(Format format, int64_t n_groups) {
  if (n_groups < 3) return nullptr;  // too few to unpack a block for
  switch (format) {
    case Format::q4_0:
      return block_product<Q4_0, Format::q4_0>;
    case Format::q8_0:
      return block_product<Q8_0, Format::q8_0>;
    case Format::q4_k:
      return block_product<Q4_K, Format::q4_k>;
    default:
      return nullptr;
  }
}

}  // namespace tinyllama::cpu
