// dW of a block-sparse layer: block p = dy[:, its rows].T @ x[:, its columns], for live blocks only.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace ajour::cpu {

struct BlockSddmm {
  int rows, cols;                  // of a block
  int64_t n, k, live;              // of the weight; blocks
  const int32_t* block_rows;       // [live] row-major order of blocks (layout/block.h)
  const int32_t* columns;          // [live]
  int dtype;                       // of dy and x: 0 float32, 1 bfloat16, 2 float16
  const void* dy;                  // [m, n]
  const void* x;                   // [m, k]
  int64_t m, dy_stride, x_stride;  // elements from one row to the next; a row's own elements are neighbours
  bool is_float;                   // the gradient is float32, else of `dtype`
  bool accumulate;                 // add to what the gradient holds
  void* gradient;                  // [live, rows, cols], contiguous; zero where a block overhangs the weight
};

AJOUR_PER_ISA(block_sddmm, BlockSddmm)

}  // namespace ajour::cpu
