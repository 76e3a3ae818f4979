// exp and the activations on vectors. Their error against float64 is at most twice that of torch's own float32 forms.
#pragma once
#include "cpu/simd.h"

namespace ajour::cpu::AJOUR_ISA {

template <int N>
AJOUR_INLINE Vec polynomial(Vec x, const float (&coefficients)[N]) {  // rising powers
  Vec y = broadcast(coefficients[N - 1]);
  AJOUR_UNROLL for (int i = N - 2; i >= 0; i--) y = fma(y, x, broadcast(coefficients[i]));
  return y;
}

// e^x within 1.2e-7 of itself; 1.2e-38 below -87.3 and infinity above 88.7. NaN stays NaN.
AJOUR_INLINE Vec exp(Vec x) {
  constexpr float kSeries[] = {0.499999934f, 0.166665201f, 0.0416683944f, 0.00836878122f, 0.00138144591f};
  const Vec clamped = min(broadcast(88.7f), max(broadcast(-87.3f), x));
  const Vec shifted =
      fma(clamped, broadcast(0x1.715476p+0f), broadcast(0x1.8p+23f));  // x / ln 2, rounded, in the low bits
  const Vec whole = shifted - 0x1.8p+23f;
  const Vec r = fma(whole, broadcast(-0x1.7f7d1cp-20f), fma(whole, broadcast(-0x1.62e4p-1f), clamped));
  const Vec fraction = fma(r * r, polynomial(r, kSeries), r) + 1.0f;
  const Vec y = as_floats(as_words(fraction) + (as_words(shifted) << 23));
  return x <= 88.7f ? y : x * __builtin_inff();
}

// e^x / 2 for -18 < x <= 0: exp without its borders, where one step of reduction is off by 5e-8 of the result at most.
AJOUR_INLINE Vec half_exp(Vec x) {
  constexpr float kSeries[] = {0.499999934f, 0.166665201f, 0.0416683944f, 0.00836878122f, 0.00138144591f};
  constexpr float kShift = 0x1.8p+23f - 1;  // what makes the half: the exponent in the low bits is one less
  const Vec shifted = fma(x, broadcast(0x1.715476p+0f), broadcast(kShift));
  const Vec r = fma(shifted - kShift, broadcast(-0.69314718f), x);
  const Vec fraction = fma(r * r, polynomial(r, kSeries), r) + 1.0f;
  return as_floats(as_words(fraction) + (as_words(shifted) << 23));
}

// x * Phi(x), with Phi(-a) = exp(a p(a)) / 2: p is fitted to log(erfc(a / sqrt 2)) / a with the error weighted by
// what reaches the result (1.8e-9), so that one exponential serves every x and nothing cancels.
AJOUR_INLINE Vec gelu(Vec x) {
  constexpr float kTail[] = {-0.79788507f,     -0.318303464f,  -0.0363626639f,   0.00483651411f, -2.16122867e-05f,
                             -0.000178900645f, 4.6079004e-05f, -5.62152914e-06f, 2.8554614e-07f};
  const Vec a = as_floats(as_words(x) & 0x7fffffffu), near = min(broadcast(5.6f), a);
  Vec tail = half_exp(near * polynomial(near, kTail));
  tail = a > 5.6f ? zero() : tail;
  return x * (x > 0.0f ? 1.0f - tail : tail);
}

// x / (1 + e^-x)
AJOUR_INLINE Vec silu(Vec x) { return x / (exp(-x) + 1.0f); }

// x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
AJOUR_INLINE Vec gelu_tanh(Vec x) {
  const Vec twice = x * fma(x * x, broadcast(0.0713548162726f), broadcast(1.5957691216057308f));
  return x / (exp(-twice) + 1.0f);
}

}  // namespace ajour::cpu::AJOUR_ISA
