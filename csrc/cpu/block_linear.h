// y = activation(x @ w.T + bias) + residual for a block-sparse w in panels (layout/block_panels.h).
#pragma once
#include "cpu/isa.h"
#include "layout/block_panels.h"

namespace ajour::cpu {

struct BlockLinear {
  BlockPanels weight;
  const void* values;
  int dtype;  // of all tensors: 0 float32, 1 bfloat16, 2 float16
  const void* x;
  int64_t m, x_stride;   // rows, and elements from one to the next; a row's own elements are neighbours
  const void* bias;      // [n] or null
  const void* residual;  // [m, n], contiguous, or null
  int activation;        // cpu/epilogue.h
  void* y;               // [m, n], contiguous
};

AJOUR_PER_ISA(block_linear, BlockLinear)

}  // namespace ajour::cpu
