// One optimizer step over many parameters in one pass over memory, masked-out weights held at +0.0.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "layout/update_table.h"

namespace ajour::cpu {

enum class UpdateRule : int { adamw, amsgrad, sgd, momentum };

// rows: [count], all with weights of one type (0 float32, 1 bfloat16, 2 float16), all with or all without a master.
// coefficients: [count, kCoefficients]. The gradient counts as grad / grad_scale.
struct MaskedUpdate {
  const UpdateRow* rows;
  int64_t count;
  const float* coefficients;
  UpdateRule rule;
  int type;
  bool master, stochastic;  // stochastic rounding, of bfloat16 without a master
  float grad_scale;
};
AJOUR_PER_ISA(masked_update, MaskedUpdate)

// partial: [chunks of all rows] = for each chunk the sum of |g|^power over kept entries; the largest |g| for power 0.
// Reads weight, grad and bits of a row only. power: 0, 1 or 2.
struct MaskedNorm {
  const UpdateRow* rows;
  int64_t count;
  int type, power;
  double* partial;
};
AJOUR_PER_ISA(masked_norm, MaskedNorm)

// Sets the gradient to +0.0 where the weight is not kept.
struct MaskedClear {
  const UpdateRow* rows;
  int64_t count;
  int itemsize;
};
AJOUR_PER_ISA(masked_clear, MaskedClear)

}  // namespace ajour::cpu
