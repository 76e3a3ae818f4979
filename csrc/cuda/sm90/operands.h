// What TMA wants of a product's operands. CUTLASS, built without asserts, does not say if a tensor map was refused.
#pragma once
#include "cuda/sm90/linear.h"
#include "memory/check.h"

namespace ajour::cuda {

// Every row that TMA moves begins at a multiple of these bytes: rows of y, of x, and of the values, which are k / 2.
constexpr int kSm90Aligned = 16;

// Throws KernelError for operands that the kernel of the call does not take.
inline void check_sm90_operands(const Sm90Call& call) {
  const int bytes = call.kernel->bytes, whole = 2 * kSm90Aligned / bytes, apart = kSm90Aligned / bytes;
  for (const void* address : {call.values, static_cast<const void*>(call.metadata), call.x, call.residual,
                              static_cast<const void*>(call.y), static_cast<const void*>(call.scratch)}) {
    if (reinterpret_cast<uintptr_t>(address) % kSm90Aligned) {
      refuse<KernelError>("values, metadata, x, residual, y and scratch must be aligned to 16 bytes");
    }
  }
  if (call.n % 8 || call.k % whole) {
    refuse<KernelError>("n must be a multiple of 8 and k of ", whole, ", this weight is ", call.n, "x", call.k);
  }
  if (call.x_stride % apart) {
    refuse<KernelError>("rows of x must be a multiple of ", apart, " elements apart, these are ", call.x_stride);
  }
  if (bytes == 1 && !(call.w_scales && call.x_scales)) {
    refuse<KernelError>("a product of 8-bit floats needs the scales of the weight and of x");
  }
}

}  // namespace ajour::cuda
