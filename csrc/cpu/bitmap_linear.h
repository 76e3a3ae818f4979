// bitmap_linear for few rows of x: each row of the weight is decoded from its bitmap once and multiplied with them all.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace ajour::cpu {

// y: [m, n] = activation(x: [m, k] @ w.T + bias) + residual, w in bitmap rows (layout/bitmap_rows.h).
struct BitmapLinear {
  const void* x;
  int64_t x_stride;  // elements from one row to the next; neighbours in a row are adjacent
  int64_t m, n, k;
  int dtype;  // 0 float32, 1 bfloat16, 2 float16
  const void* values;
  const uint64_t* bits;
  const int64_t* starts;
  const void* bias;      // or null
  const void* residual;  // [m, n] or null
  int64_t residual_stride;
  int activation;
  void* y;
  bool* out_of_memory;  // set instead of a result
};

AJOUR_PER_ISA(bitmap_linear, BitmapLinear)

}  // namespace ajour::cpu
