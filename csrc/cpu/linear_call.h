// One call of a linear op's kernel, the same for all of them: y = activation(x @ w.T + bias) + residual.
#pragma once
#include <cstdint>
#include <functional>

namespace ajour::cpu {

struct LinearCall {
  void* const* packed;  // the tensors that hold w, in the kernel's own order
  const void* x;        // [m, k], its rows x_stride elements apart
  int64_t m, x_stride;
  const void* bias;      // [n] or null
  const void* residual;  // [m, n], contiguous, or null
  int activation;        // cpu/epilogue.h
  void* y;               // [m, n], contiguous
};

// A kernel, with what it knows of a weight beyond its tensors: sizes, dtype, pattern.
using RunLinear = std::function<void(const LinearCall&)>;

}  // namespace ajour::cpu
