// One optimizer step over many parameters in one launch.
#pragma once
#include <cstdint>

#include "layout/update_table.h"

namespace ajour::cuda {

// As cpu::MaskedUpdate (cpu/masked_update.h), on the current device; all memory is the device's. chunk_rows: [chunks],
// for each chunk the row it belongs to. grad_scale, found_inf: one float, or null; where found_inf is not zero, nothing
// happens. Neither waits for the device nor allocates, so that it can be captured in a graph.
struct MaskedUpdate {
  const UpdateRow* rows;
  const int32_t* chunk_rows;
  int64_t chunks;
  const float* coefficients;
  int rule, type;  // of cpu::UpdateRule; 0 float32, 1 bfloat16, 2 float16
  bool master, stochastic;
  const float* grad_scale;
  const float* found_inf;
  void* stream;
};

// Throws KernelError if the launch fails.
void masked_update(const MaskedUpdate& arguments);

}  // namespace ajour::cuda
