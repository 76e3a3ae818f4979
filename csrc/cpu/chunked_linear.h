// bitmap_linear for many rows of x (and for few where the weight is very sparse): tokens in lanes, chunks of k in L1.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace ajour::cpu {

// y: [m, n] = activation(x: [m, k] @ w.T + bias) + residual, w in chunked rows (layout/chunked_rows.h).
struct ChunkedLinear {
  const void* x;
  int64_t x_stride;  // elements from one row to the next; neighbours in a row are adjacent
  int64_t m, n, k;
  int dtype;  // 0 float32, 1 bfloat16, 2 float16
  const void* values;
  const uint16_t* columns;
  const uint32_t* visits;
  const int64_t* cells;
  const int64_t* panels;
  int64_t panel_count, chunk_count, chunk_columns;
  const void* bias;      // or null
  const void* residual;  // [m, n] or null
  int64_t residual_stride;
  int activation;
  void* y;
  bool* out_of_memory;    // set instead of a result
  float* sums = nullptr;  // [m, n]: x @ w.T goes there instead, unrounded, and nothing to y; or null
};

AJOUR_PER_ISA(chunked_linear, ChunkedLinear)

}  // namespace ajour::cpu
