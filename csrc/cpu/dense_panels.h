// A dense weight in the same 16-row panels as the sparse kernels': the control that tells, for few rows, what sparsity
// gains from what packing gains. Used by benchmarks only.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace ajour::cpu {

struct DensePanels {
  const void* weight;  // [n / 16][k][16] float32, or [n / 16][k / 2][16][2] bfloat16
  const void* x;       // [m, k], contiguous
  void* y;             // [m, n], contiguous: x @ w.T
  int64_t m, n, k;     // n a multiple of 16, k of 2
  bool bfloat16;
};

AJOUR_PER_ISA(dense_panels, DensePanels)

}  // namespace ajour::cpu
