// 2:4 at many rows on the sparse tensor cores of Ampere, Ada and later: y = activation(x @ w.T + bias) + residual.
#pragma once
#include "layout/sm80_shape.h"

namespace ajour::cuda {

// y: [m, n] = activation(x: [m, k] @ w.T + bias: [n]) + residual: [m, n], in 16-bit floats; by value to the kernel.
struct Sm80Call {
  const uint8_t* slabs;  // of 2:4 (layout/nm_slabs.h)
  const uint16_t* x;     // rows x_stride elements apart, each aligned to 16 bytes
  int64_t x_stride;
  const uint16_t* bias;      // or null
  const uint16_t* residual;  // or null
  uint16_t* y;
  bool whole_chunks;   // y is aligned to 16 bytes, and n is a multiple of 8
  uint8_t* scratch;    // shape.scratch_bytes: the parts of shared tiles
  unsigned* counters;  // of their arrivals (counters.h); the launch takes them itself
  int m, n, k;
  int activation;  // as in terms/problem.py: none, relu, gelu, gelu_tanh, silu
  Sm80Shape shape;
};

// Launches on `stream` of `device` and returns; safe while a graph is captured. Throws KernelError if CUDA refuses.
void nm_sm80(const Sm80Call& call, bool bfloat16, int device, void* stream);

}  // namespace ajour::cuda
