// What TMA wants of a product's operands. CUTLASS, built without asserts, does not say if a tensor map was refused.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "memory/check.h"

namespace ajour::cuda {

// Sides and the stride of x in elements; in_k and in_stride: what TMA's 16 bytes make of k and of the stride.
inline void check_sm90_operands(std::initializer_list<const void*> addresses, int n, int k, int in_k, int64_t x_stride,
                                int in_stride) {
  for (const void* address : addresses) {
    if (reinterpret_cast<uintptr_t>(address) % 16) {
      refuse<KernelError>("values, metadata, x, residual, y and scratch must be aligned to 16 bytes");
    }
  }
  if (n % 8 || k % in_k) {
    refuse<KernelError>("n must be a multiple of 8 and k of ", in_k, ", this weight is ", n, "x", k);
  }
  if (x_stride % in_stride) {
    refuse<KernelError>("rows of x must be a multiple of ", in_stride, " elements apart, these are ", x_stride);
  }
}

}  // namespace ajour::cuda
