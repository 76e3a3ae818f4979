// What happens to a result before it is stored: y = activation(sum + bias) + residual.
#pragma once
#include "cpu/math.h"

namespace ajour::cpu::AJOUR_ISA {

// The codes that Python passes.
enum Activation : int { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4 };

AJOUR_INLINE Vec activate(Vec v, int activation) {
  switch (activation) {
    case kRelu:
      return max(zero(), v);
    case kGelu:
      return gelu(v);
    case kGeluTanh:
      return gelu_tanh(v);
    case kSilu:
      return silu(v);
    default:
      return v;
  }
}

// T is float, BFloat16 or Float16: the type of bias, residual and y.
template <class T>
struct Epilogue {
  const T* bias;            // [n] or null
  const T* residual;        // [m, n] or null
  int64_t residual_stride;  // elements from one row of the residual to the next
  int activation;

  // A single max does it: with `floor()` a kernel can store straight from its registers.
  bool is_simple() const { return activation <= kRelu && !residual; }
  Vec floor() const { return broadcast(activation == kRelu ? 0.0f : -__builtin_inff()); }

  // The final value of `count` (1..kLanes) neighbours in row `row` of y, from column `column` on.
  AJOUR_INLINE_MEMBER Vec finish(Vec sum, int64_t row, int64_t column, int count) const {
    if (bias) sum = sum + (count == kLanes ? load(bias + column) : load(bias + column, count));
    sum = activate(sum, activation);
    if (residual) sum = sum + load(residual + row * residual_stride + column, count);
    return sum;
  }
};

}  // namespace ajour::cpu::AJOUR_ISA
