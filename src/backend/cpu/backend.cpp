// The CPU backend: threads, scratch memory and tiling around the kernels of one instruction set.
// With one row the small operations run on the calling thread, so that a layer has five joins: qkv,
// attention, output, gate/up, down.
#include "backend/backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "backend/cpu/isa.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/tiles.h"
#include "backend/cpu/training.h"
#include "backend/cpu/weights.h"
#include "base/error.h"
#include "base/parallel.h"
#include "tensor/quant.h"

namespace tinyllama {
namespace {

using cpu::CpuPacked;
using cpu::Format;
using cpu::group_width;
using cpu::Kernels;
using cpu::kTilesPerBlock;
using cpu::KvFormat;
using cpu::PackedPart;
using cpu::part_tiles;
using cpu::Scratch;
using cpu::tile_products;

// Work below these is not worth a join, which on a busy machine waits for the other threads' turn.
constexpr int64_t kSerialFloats = 16384;        // of row-wise operations
constexpr int64_t kSliceFloats = 8192;          // activations that one thread packs at a time
constexpr int64_t kSerialProducts = 64 * 1024;  // multiply-adds of a matrix product or of attention
constexpr int64_t kQueriesPerJob = 64;  // queries of one attention job; their state stays in L2

KvFormat kv_format(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return KvFormat::f32;
    case DType::f16:
      return KvFormat::f16;
    case DType::bf16:
      return KvFormat::bf16;
    case DType::q8_0:
      return KvFormat::q8_0;
    default:
      break;
  }
  fail(fmt::format("[cache] type {} cannot hold keys and values: want f32, f16, bf16 or q8_0",
                   traits(dtype).name));
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options)
      : k_(cpu::kernels_for(options.isa)),
        pool_(options.threads),
        job_scratch_(static_cast<size_t>(pool_.size())) {}

  std::string name() const override { return fmt::format("cpu/{}", k_.name); }

  Buffer alloc(size_t bytes) override { return alloc_host(bytes); }
  void copy_to_host(const std::byte* from, std::byte* to, size_t bytes) override {
    std::memcpy(to, from, bytes);
  }
  void copy_from_host(const std::byte* from, std::byte* to, size_t bytes) override {
    std::memcpy(to, from, bytes);
  }
  void copy(const std::byte* from, std::byte* to, size_t bytes) override {
    std::memcpy(to, from, bytes);
  }

  std::unique_ptr<Packed> pack(std::span<const PackPart> parts) override {
    return cpu::pack_weights(parts, pool_, arena_);
  }

  void repack(std::span<const PackPart> parts, Packed& packed) override {
    cpu::fill_packed(parts, pool_, static_cast<CpuPacked&>(packed));
  }

  TrainingOps& training() override {
    if (!training_) training_ = cpu::make_training(k_, pool_, batch_, rope_);
    return *training_;
  }

  size_t kv_block_bytes(const KvShape& shape) const override {
    kv_format(shape.dtype);
    return static_cast<size_t>(shape.n_kv_heads) * head_bytes(shape);
  }

  void begin(const Batch& batch, std::span<const float> rope) override {
    batch_ = &batch;
    rope_ = rope;
    segment_of_row_.resize(batch.tokens.size());
    for (size_t s = 0; s < batch.segments.size(); s++) {
      const Segment& segment = batch.segments[s];
      std::fill_n(segment_of_row_.begin() + segment.first_row, segment.n_rows,
                  static_cast<int32_t>(s));
    }
  }

  void embed(TensorView table, Tensor y) override {
    for_rows(batch_->rows(), y.cols, [&](int64_t r) {
      decode_row(table.dtype, table.row(batch_->tokens[static_cast<size_t>(r)]), y.row_as<float>(r),
                 y.cols);
    });
  }

  void rms_norm(TensorView x, TensorView w, double eps, Tensor y) override {
    for_rows(x.rows, x.cols, [&](int64_t r) {
      k_.rms_norm(x.row_as<float>(r), w.row_as<float>(0), eps, x.cols, y.row_as<float>(r));
    });
  }

  void swiglu(TensorView gate_up, Tensor y) override {
    for_rows(y.rows, y.cols, [&](int64_t r) {
      const float* gate = gate_up.row_as<float>(r);
      k_.swiglu(gate, gate + y.cols, y.cols, y.row_as<float>(r));
    });
  }

  void linear(const Packed& packed, TensorView x, Tensor y, bool accumulate) override {
    const auto& w = static_cast<const CpuPacked&>(packed);
    TL_CHECK(x.cols == w.cols && y.cols == w.rows && x.rows == y.rows && x.rows > 0);
    pack_activations(w, x);
    // A block of tiles shares each pass over the columns; with one group of them there is nothing
    // to share, and single tiles balance better.
    const int64_t tiles = x.rows > k_.max_columns ? kTilesPerBlock : 1;
    const auto blocks_of = [&](const PackedPart& part) {
      return (part_tiles(part) + tiles - 1) / tiles;
    };
    const auto product = [&](int64_t block) {
      size_t p = 0;
      for (; block >= blocks_of(w.parts[p]); p++) block -= blocks_of(w.parts[p]);
      const int64_t end = std::min(part_tiles(w.parts[p]), (block + 1) * tiles);
      const PackedPart& part = w.parts[p];
      const Tensor out(y.data + static_cast<size_t>(part.first_row) * sizeof(float), DType::f32,
                       y.rows, part.rows, y.row_stride);
      tile_products(k_, part.format, part.tiles, w.cols, block * tiles, end,
                    packed_x_[static_cast<size_t>(part.format)], out, accumulate);
    };
    int64_t blocks = 0;
    for (const PackedPart& part : w.parts) blocks += blocks_of(part);
    if (w.rows * w.cols * x.rows <= kSerialProducts) {
      for (int64_t block = 0; block < blocks; block++) product(block);
    } else {
      pool_.for_each(blocks, product);
    }
  }

  void rope_store(Tensor qkv, int64_t n_heads, const KvLayer& kv) override {
    const KvShape& shape = kv.shape;
    const int64_t dim = shape.head_dim;
    for_rows(qkv.rows, qkv.cols * 4, [&](int64_t r) {
      const float* cos = rope_.data() + r * dim;
      float* heads = qkv.row_as<float>(r);
      for (int64_t h = 0; h < n_heads + shape.n_kv_heads; h++)
        k_.rope(heads + h * dim, cos, cos + dim / 2, dim);
      const Segment& segment =
          batch_->segments[static_cast<size_t>(segment_of_row_[static_cast<size_t>(r)])];
      const int64_t position = segment.past + r - segment.first_row;
      std::byte* block =
          kv.data +
          static_cast<size_t>(segment.kv_blocks[static_cast<size_t>(position / kKvBlock)]) *
              kv.block_bytes;
      for (int64_t h = 0; h < shape.n_kv_heads; h++) {
        const float* key = heads + (n_heads + h) * dim;
        k_.store_kv(kv_format(shape.dtype), block + static_cast<size_t>(h) * head_bytes(shape), dim,
                    position % kKvBlock, key, key + shape.n_kv_heads * dim);
      }
    });
  }

  void attention(TensorView qkv, int64_t n_heads, const KvLayer& kv, Tensor y,
                 Tensor softmax) override {
    const KvShape& shape = kv.shape;
    const int64_t group = n_heads / shape.n_kv_heads;
    const int64_t rows_per_job = std::max<int64_t>(1, kQueriesPerJob / group);
    // Jobs: (row tile of a segment, kv head), kv heads innermost.
    jobs_.clear();
    int64_t products = 0;  // query and key pairs of one head
    for (size_t s = 0; s < batch_->segments.size(); s++) {
      const Segment& segment = batch_->segments[s];
      products += segment.n_rows * (segment.past + segment.n_rows);
      for (int64_t row = 0; row < segment.n_rows; row += rows_per_job)
        jobs_.push_back({static_cast<int32_t>(s), row});
    }
    const size_t floats =
        static_cast<size_t>(cpu::attention_scratch(rows_per_job, group, shape.head_dim));
    const auto n_jobs = static_cast<int64_t>(jobs_.size()) * shape.n_kv_heads;
    const auto work = [&](int64_t i, int thread) {
      // Long jobs first: later rows of a prompt see more keys.
      const JobRows& rows = jobs_[jobs_.size() - 1 - static_cast<size_t>(i / shape.n_kv_heads)];
      const int64_t head = i % shape.n_kv_heads;
      const Segment& segment = batch_->segments[static_cast<size_t>(rows.segment)];
      const int64_t row = segment.first_row + rows.first;
      cpu::AttentionJob job = {};
      job.blocks = segment.kv_blocks.data();
      job.cache = kv.data + static_cast<size_t>(head) * head_bytes(shape);
      job.block_bytes = kv.block_bytes;
      job.format = kv_format(shape.dtype);
      job.head_dim = shape.head_dim;
      job.group = group;
      job.first_position = segment.past + rows.first;
      job.n_rows = std::min(rows_per_job, segment.n_rows - rows.first);
      job.q = qkv.row_as<float>(row) + head * group * shape.head_dim;
      job.q_stride = static_cast<int64_t>(qkv.row_stride / sizeof(float));
      job.out = y.row_as<float>(row) + head * group * shape.head_dim;
      job.out_stride = static_cast<int64_t>(y.row_stride / sizeof(float));
      if (softmax) {
        job.largest = softmax.row_as<float>(row) + head * group;
        job.sums = job.largest + n_heads;
        job.softmax_stride = static_cast<int64_t>(softmax.row_stride / sizeof(float));
      }
      job.scratch = reinterpret_cast<float*>(
          job_scratch_[static_cast<size_t>(thread)].get(floats * sizeof(float)));
      k_.attention(job);
    };
    if (products * n_heads * shape.head_dim <= kSerialProducts) {
      for (int64_t i = 0; i < n_jobs; i++) work(i, 0);
    } else {
      pool_.for_each(n_jobs, work);
    }
  }

  void gather_logit_rows(TensorView x, Tensor y) override {
    for (size_t i = 0; i < batch_->logit_rows.size(); i++)
      std::memcpy(y.row(static_cast<int64_t>(i)), x.row(batch_->logit_rows[i]),
                  row_bytes(DType::f32, x.cols));
  }

  void move_kv(const KvLayer& kv, std::span<const int32_t> blocks, int64_t from, int64_t to,
               int64_t n, std::span<const float> rope) override {
    const KvShape& shape = kv.shape;
    const KvFormat format = kv_format(shape.dtype);
    const auto head_at = [&](int64_t position, int64_t head) {
      return kv.data +
             static_cast<size_t>(blocks[static_cast<size_t>(position / kKvBlock)]) *
                 kv.block_bytes +
             static_cast<size_t>(head) * head_bytes(shape);
    };
    const int64_t dim = shape.head_dim;
    pool_.for_each(shape.n_kv_heads, [&](int64_t head) {
      std::vector<float> k(static_cast<size_t>(dim)), v(static_cast<size_t>(dim));
      for (int64_t i = 0; i < n; i++) {
        k_.load_kv(format, head_at(from + i, head), dim, (from + i) % kKvBlock, k.data(), v.data());
        k_.rope(k.data(), rope.data(), rope.data() + dim / 2, dim);
        k_.store_kv(format, head_at(to + i, head), dim, (to + i) % kKvBlock, k.data(), v.data());
      }
    });
  }

 private:
  struct JobRows {
    int32_t segment;
    int64_t first;  // row within the segment
  };

  static size_t head_bytes(const KvShape& shape) {
    return cpu::kv_head_bytes(kv_format(shape.dtype), shape.head_dim);
  }
  template <class Body>
  void for_rows(int64_t rows, int64_t floats_per_row, const Body& body) {
    if (rows * floats_per_row <= kSerialFloats) {
      for (int64_t r = 0; r < rows; r++) body(r);
      return;
    }
    pool_.for_each(rows, body);
  }

  // Packs x once for each format among w's parts.
  void pack_activations(const CpuPacked& w, TensorView x) {
    for (size_t p = 0; p < w.parts.size(); p++) {
      const Format format = w.parts[p].format;
      const auto slot = static_cast<size_t>(format);
      const bool seen =
          std::any_of(w.parts.begin(), w.parts.begin() + static_cast<std::ptrdiff_t>(p),
                      [&](const PackedPart& other) { return other.format == format; });
      if (seen) continue;
      const size_t column = k_.column_bytes(format, w.cols);
      packed_x_[slot] =
          reinterpret_cast<uint8_t*>(x_scratch_[slot].get(column * static_cast<size_t>(x.rows)));
      groups_.clear();
      for (int64_t c = 0; c < x.rows; c += group_width(k_, x.rows - c)) groups_.push_back(c);
      // A group is cut along k too: a few columns are one group.
      const int64_t n_records = cpu::records(format, w.cols);
      const int64_t slices = std::clamp<int64_t>(x.rows * x.cols / kSliceFloats, 1, pool_.size());
      const auto slice_at = [&](int64_t slice) {
        if (slice == slices) return n_records;
        return n_records * slice / slices / cpu::kSliceRecords * cpu::kSliceRecords;
      };
      const auto pack = [&](int64_t item) {
        const int64_t c = groups_[static_cast<size_t>(item / slices)], slice = item % slices;
        k_.pack_columns(format, x.row_as<float>(c),
                        static_cast<int64_t>(x.row_stride / sizeof(float)),
                        group_width(k_, x.rows - c), w.cols, slice_at(slice), slice_at(slice + 1),
                        packed_x_[slot] + column * static_cast<size_t>(c));
      };
      const auto n_items = static_cast<int64_t>(groups_.size()) * slices;
      for_rows(n_items, x.rows * x.cols / n_items, pack);
    }
  }

  const Kernels& k_;
  ThreadPool pool_;
  cpu::WeightArena arena_;
  const Batch* batch_ = nullptr;
  std::span<const float> rope_;
  std::vector<int32_t> segment_of_row_;
  std::vector<JobRows> jobs_;
  std::vector<Scratch> job_scratch_;  // per thread
  std::vector<int64_t> groups_;       // first column of each group
  Scratch x_scratch_[cpu::kFormats];
  uint8_t* packed_x_[cpu::kFormats] = {};
  std::unique_ptr<TrainingOps> training_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu(const CpuOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

}  // namespace tinyllama
