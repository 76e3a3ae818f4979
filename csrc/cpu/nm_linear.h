// y = activation(x @ w.T + bias) + residual for a weight in N:M panels.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "layout/nm_panels.h"

namespace ajour::cpu {

enum FloatType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct NMLinear {
  NMPanels layout;  // as nm_panels() lays out a weight of this type
  const void* values;
  const uint8_t* codes;
  const void* x;  // [m, k], its rows x_stride elements apart
  int64_t m, x_stride;
  const void* bias;      // [n] or null
  const void* residual;  // [m, n], contiguous, or null
  void* y;               // [m, n], contiguous
  FloatType type;        // of x, values, bias, residual and y
  int activation;
  const float* sums = nullptr;  // [m, n], contiguous: more terms of the sum, before anything is rounded; or null
};

// Throws std::bad_alloc if a thread could not get its scratch.
AJOUR_PER_ISA(nm_linear, NMLinear)

}  // namespace ajour::cpu
