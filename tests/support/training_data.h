// Matrices and packed documents for tests of training.
#pragma once

#include <initializer_list>
#include <vector>

#include "backend/backend.h"
#include "model/rope.h"
#include "support/tiny_model.h"

namespace tinyllama::testing {

// A matrix of random floats on the host, which every backend here reads.
struct Matrix {
  std::vector<float> values;
  int64_t rows, cols;

  Matrix(int64_t r, int64_t c, uint64_t seed, double magnitude = 1)
      : values(random_floats(static_cast<size_t>(r * c), seed, magnitude)), rows(r), cols(c) {}
  operator Tensor() {  // NOLINT(google-explicit-constructor)
    return {reinterpret_cast<std::byte*>(values.data()), DType::f32, rows, cols};
  }
  operator TensorView() const {  // NOLINT(google-explicit-constructor)
    return {reinterpret_cast<const std::byte*>(values.data()), DType::f32, rows, cols};
  }
  double dot(const Matrix& other) const {
    double sum = 0;
    for (size_t i = 0; i < values.size(); i++)
      sum += static_cast<double>(values[i]) * static_cast<double>(other.values[i]);
    return sum;
  }
};

// A batch of documents as TrainingPass makes it, with angles of its positions.
struct Documents {
  Batch batch;
  std::vector<int32_t> blocks;
  std::vector<float> rope;

  Documents(std::initializer_list<int64_t> lengths, int64_t vocab, int64_t head_dim) {
    for (int32_t i = 0; i < 64; i++) blocks.push_back(i);
    size_t block = 0;
    const RopeFrequencies frequencies = rope_frequencies(tiny_config({.head_dim = head_dim}), 256);
    for (const int64_t length : lengths) {
      const auto n = static_cast<size_t>((length + kKvBlock - 1) / kKvBlock);
      Segment& segment = batch.segments.emplace_back();
      segment.first_row = batch.rows();
      segment.n_rows = length;
      segment.kv_blocks = std::span(blocks).subspan(block, n);
      block += n;
      for (int64_t i = 0; i < length; i++) {
        batch.logit_rows.push_back(static_cast<int32_t>(batch.rows()));
        batch.tokens.push_back(static_cast<int32_t>(hash_key(5, block, static_cast<uint64_t>(i)) %
                                                    static_cast<uint64_t>(vocab)));
        rope.resize(rope.size() + static_cast<size_t>(head_dim));
        rope_row(frequencies, i, &rope.back() + 1 - head_dim);
      }
    }
  }
};

}  // namespace tinyllama::testing
