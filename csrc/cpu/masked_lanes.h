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

// Whether some bit is set.
AJOUR_INLINE bool any_bit(Words w) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)w, (__m512i)w);
#else
  uint64_t parts[kLanes / 2], any = 0;
  memcpy(parts, &w, sizeof w);
  AJOUR_UNROLL for (uint64_t part : parts) any |= part;
  return any;
#endif
}

// The bits of up to 64 entries from entry i on, a multiple of 64; `left` entries remain.
AJOUR_INLINE uint64_t mask_word(const uint8_t* bits, int64_t i, int64_t left) {
  uint64_t word = 0;
  if (left >= 64) {
    memcpy(&word, bits + i / 8, 8);
  } else {
    memcpy(&word, bits + i / 8, size_t(left + 7) / 8);
  }
  return word;
}

#if defined(__AVX512F__)
// Zero, in a register that nobody waits for: vcompressps and vexpandps wait for what their destination held before,
// their zeroing forms too, which makes them 5 cycles one after another instead of 1 (Zen 5).
AJOUR_INLINE __m512 fresh() {
  __m512 v = _mm512_setzero_ps();
  asm("" : "+v"(v));  // or the compiler would choose the zeroing form again
  return v;
}
#endif

// The lanes whose bit is set, one after another, to p. Writes kLanes floats, of which only these mean anything.
AJOUR_INLINE void compress(float* p, Vec v, uint32_t mask) {
#if defined(__AVX512F__)
  // to a register first: the form that writes to memory is microcoded
  store(p, _mm512_mask_compress_ps(fresh(), static_cast<__mmask16>(mask), v));
#else
  float lanes[kLanes];
  store(lanes, v);
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++) {
    *p = lanes[i];
    p += (mask >> i) & 1;
  }
#endif
}

// What undoes compress, +0.0 in the other lanes. Reads kLanes floats.
AJOUR_INLINE Vec decompress(const float* p, uint32_t mask) {
#if defined(__AVX512F__)
  return _mm512_mask_expand_ps(fresh(), static_cast<__mmask16>(mask), load(p));
#else
  float lanes[kLanes];
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++) {
    lanes[i] = (mask >> i) & 1 ? *p : 0.0f;
    p += (mask >> i) & 1;
  }
  return load(lanes);
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
