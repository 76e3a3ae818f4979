// The decode kernels: linear layers with a sparse weight for 1 to 64 rows of x, bound by the bytes of the weight.
#pragma once
#include "layout/bitmap_slabs.h"
#include "layout/decode_shape.h"
#include "layout/gap_rows.h"
#include "layout/nm_slabs.h"

namespace ajour::cuda {

// y: [m, n] = activation(x: [m, k] @ w.T + bias: [n]) + residual: [m, n], in 16-bit floats; by value to the kernel.
struct DecodeCall {
  const uint8_t* slabs;
  const int32_t* index;  // where slabs begin, in units of 16 bytes; null if all have one size
  const uint16_t* x;     // rows x_stride elements apart
  int64_t x_stride;
  bool whole_chunks;         // rows of x are aligned to 16 bytes
  const uint16_t* bias;      // or null
  const uint16_t* residual;  // or null
  uint16_t* y;
  uint8_t* scratch;    // shape.scratch_bytes: the parts of shared tiles
  unsigned* counters;  // of their arrivals (counters.h); the launch takes them itself
  int m, n, k;
  int activation;  // as in terms/problem.py: none, relu, gelu, gelu_tanh, silu
  DecodeShape shape;
};

// The processors and the shared memory of a device. Throws KernelError.
DeviceLimits device_limits(int device);

// All launch on `stream` of `device` and return; safe while a graph is captured. The slabs must be aligned to 16 bytes.
// Throw KernelError if CUDA refuses.
void nm_decode(const NMSlabs& layout, const DecodeCall& call, bool bfloat16, int device, void* stream);
// The parts of nm_decode that are not 2:4: the most common patterns, false where it has none; and all of them.
bool known_decode(const NMSlabs& layout, const DecodeCall& call, bool bfloat16, int device, void* stream);
void placed_decode(const NMSlabs& layout, const DecodeCall& call, bool bfloat16, int device, void* stream);
// 2:4 for 1 to 4 rows, on CUDA cores instead of tensor cores.
void lanes_decode(const NMSlabs& layout, const DecodeCall& call, bool bfloat16, int device, void* stream);
void bitmap_decode(const DecodeCall& call, bool bfloat16, int device, void* stream);
// Dense, a control for benchmarks.
void dense_decode(const DecodeCall& call, bool bfloat16, int device, void* stream);
// Of 1 to 4 rows: `slabs` are gap rows, whose order stands beside them; `shape` of the call is not used.
void gap_decode(const GapRows& layout, const int32_t* order, const GapShape& shape, const DecodeCall& call,
                bool bfloat16, int device, void* stream);

}  // namespace ajour::cuda
