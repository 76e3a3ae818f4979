// Vectors of which only some lanes count: bit i of a mask is lane i.
#pragma once
#include "cpu/simd.h"

namespace ajour::cpu::AJOUR_ISA {

constexpr uint32_t kAllLanes = (1u << kLanes) - 1;

// v where the bit is set, +0.0 elsewhere.
AJOUR_INLINE Vec select(Vec v, uint32_t mask) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(static_cast<__mmask16>(mask), v);
#else
  Words bit;
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++) bit[i] = 1u << i;
  return as_floats(as_words(v) & Words((bit & mask) != 0));
#endif
}

// The kLanes bits of a mask at entry i, a multiple of kLanes; `left` entries remain, and bits beyond them are zero.
AJOUR_INLINE uint32_t lane_mask(const uint8_t* bits, int64_t i, int64_t left) {
  const uint8_t* p = bits + i / 8;
  if constexpr (kLanes == 4) return uint32_t(*p >> (i & 4)) & 15u;
  if constexpr (kLanes == 8) return *p;
  return left > 8 ? uint32_t(p[0]) | uint32_t(p[1]) << 8 : *p;
}

// expand (cpu/simd.h) for a mask that may be full. Reads as many floats as there are set bits.
AJOUR_INLINE Vec spread(const float* p, uint32_t mask) { return mask == kAllLanes ? load(p) : expand(p, mask); }

// The lanes whose bit is set, one after another, to p; writes no more than these.
AJOUR_INLINE void gather(float* p, Vec v, uint32_t mask) {
  if (mask == kAllLanes) return store(p, v);
#if defined(__AVX512F__)
  // compressing in a register: the form that writes to memory is microcoded on Zen 4 and 5
  store(p, _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), v), __builtin_popcount(mask));
#else
  float lanes[kLanes];
  store(lanes, v);
  for (; mask; mask &= mask - 1) *p++ = lanes[__builtin_ctz(mask)];
#endif
}

AJOUR_INLINE Vec sqrt(Vec v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(v);
#else
  Vec root;
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++) root[i] = __builtin_sqrtf(v[i]);
  return root;
#endif
}

}  // namespace ajour::cpu::AJOUR_ISA
