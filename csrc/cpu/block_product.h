// Products that read the canonical blocks where they lie (layout/block.h), so that training copies no value:
//   y = activation(x @ w.T + bias) + residual, or, transposed, y = x @ w (dx of the layer, with dy as x).
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace ajour::cpu {

struct BlockProduct {
  int rows, cols;          // of a block
  int64_t n, k;            // of the weight
  bool transposed;         // y: [m, k] = x: [m, n] @ w
  const void* blocks;      // [live, rows, cols]
  const int32_t* offsets;  // blocks before each block row of w; transposed: before each block column
  const int32_t* places;   // [live] block column of each block; transposed: block row
  const int32_t* order;    // null; transposed: the blocks sorted by column
  int dtype;               // of all tensors: 0 float32, 1 bfloat16, 2 float16
  const void* x;
  int64_t m, x_stride;   // rows, and elements from one to the next; a row's own elements are neighbours
  const void* bias;      // one for each column of y, or null
  const void* residual;  // as y, or null
  int activation;        // cpu/epilogue.h
  void* y;               // contiguous
};

AJOUR_PER_ISA(block_product, BlockProduct)

}  // namespace ajour::cpu
