// Products of packed tiles with packed columns, whoever packed them.
#pragma once

#include "backend/cpu/kernels.h"
#include "tensor/tensor.h"

namespace tinyllama::cpu {

// The width of the next column group: max_columns while there are as many, then 8, 4, 2, 1.
int group_width(const Kernels& kernels, int64_t columns_left);

// y (columns, rows) = or += tiles [first, end) against all columns; the other rows of y are left
// alone. `x` holds the columns' groups, `cols` long.
void tile_products(const Kernels& kernels, Format format, const uint8_t* tiles, int64_t cols,
                   int64_t first, int64_t end, const uint8_t* x, Tensor y, bool accumulate);

}  // namespace tinyllama::cpu
