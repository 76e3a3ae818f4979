// Four weights at a time, spread over a vector: one load and an in-register shuffle each instead of four broadcasts.
#pragma once
#include "cpu/simd.h"
#include "memory/float16.h"

namespace ajour::cpu::AJOUR_ISA {

typedef float Four __attribute__((vector_size(16), may_alias));
typedef float FourAnywhere __attribute__((vector_size(16), aligned(1), may_alias));

// Four weights from any address, as floats.
AJOUR_INLINE Four load_four(const float* p) { return *reinterpret_cast<const FourAnywhere*>(p); }

AJOUR_INLINE Four load_four(const BFloat16* p) {
#if defined(__x86_64__)
  return (Four)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  return Four{bfloat16_to_float(p[0].bits), bfloat16_to_float(p[1].bits), bfloat16_to_float(p[2].bits),
              bfloat16_to_float(p[3].bits)};
#endif
}

AJOUR_INLINE Four load_four(const Float16* p) {
#if defined(__F16C__)
  return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  return Four{float16_to_float(p[0].bits), float16_to_float(p[1].bits), float16_to_float(p[2].bits),
              float16_to_float(p[3].bits)};
#endif
}

// The four in every four lanes of a V.
template <class V, class T>
AJOUR_INLINE V repeat_four(const T* p) {
  const Four four = load_four(p);
  if constexpr (sizeof(V) == sizeof(Four)) {
    return four;
  } else {
#if defined(__AVX512F__)
    return _mm512_broadcast_f32x4(four);
#elif defined(__AVX2__)
    return _mm256_set_m128(four, four);
#endif
  }
}

// Number `place` of each four lanes, in all four of them.
template <int place>
AJOUR_INLINE Four splat_in_fours(Four v) {
  return __builtin_shufflevector(v, v, place, place, place, place);
}
#if defined(__AVX512F__)
template <int place>
AJOUR_INLINE Vec splat_in_fours(Vec v) {
  return _mm512_permute_ps(v, 0x55 * place);
}
AJOUR_INLINE Four fma(Four a, Four b, Four c) { return _mm_fmadd_ps(a, b, c); }
#elif defined(__AVX2__)
template <int place>
AJOUR_INLINE Vec splat_in_fours(Vec v) {
  return _mm256_permute_ps(v, 0x55 * place);
}
AJOUR_INLINE Four fma(Four a, Four b, Four c) { return _mm_fmadd_ps(a, b, c); }
#endif

}  // namespace ajour::cpu::AJOUR_ISA
