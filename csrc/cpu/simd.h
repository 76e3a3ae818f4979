// Vectors of kLanes floats under one set of names, for AVX-512 (with and without BF16), AVX2+FMA, NEON and plain SSE2
// or whatever the compiler makes of a 16-byte vector. A unit that includes this is compiled once per instruction set
// with -DAJOUR_ISA=<name>; everything here has internal linkage, so that the linker never hands an AVX-512 copy to an
// old CPU. Arithmetic is written with operators (+ - * / < & | << ?:), as the types are GCC vectors.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define AJOUR_INLINE static inline __attribute__((always_inline))
#define AJOUR_INLINE_MEMBER inline __attribute__((always_inline))
#define AJOUR_UNROLL _Pragma("GCC unroll 64")

namespace ajour::cpu::AJOUR_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
#if defined(__AVX512BF16__)
constexpr bool kHasDotPairs = true;  // dot_pairs is one instruction
#else
constexpr bool kHasDotPairs = false;
#endif

// The two 16-bit floats, as bits.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

typedef float Vec __attribute__((vector_size(4 * kLanes), may_alias));  // kLanes floats
typedef uint32_t Words
    __attribute__((vector_size(4 * kLanes), may_alias));  // kLanes words: indices, pairs of 16-bit floats
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), may_alias));  // kLanes 16-bit floats as bits
typedef float VecAnywhere __attribute__((vector_size(4 * kLanes), aligned(1), may_alias));
typedef uint32_t WordsAnywhere __attribute__((vector_size(4 * kLanes), aligned(1), may_alias));
typedef uint16_t HalvesAnywhere __attribute__((vector_size(2 * kLanes), aligned(1), may_alias));

AJOUR_INLINE Words as_words(Vec v) { return reinterpret_cast<Words>(v); }
AJOUR_INLINE Vec as_floats(Words w) { return reinterpret_cast<Vec>(w); }

AJOUR_INLINE Vec zero() { return Vec{}; }
AJOUR_INLINE Vec broadcast(float value) { return value - Vec{}; }
AJOUR_INLINE Words broadcast(uint32_t word) { return word - Words{}; }

// a * b + c, fused where the processor can.
AJOUR_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// The larger (smaller) one; b where either is NaN, so max(floor, v) keeps a NaN in v.
AJOUR_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
AJOUR_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

// The sum of all lanes, always in the same order.
AJOUR_INLINE float sum(Vec v) {
  float parts[kLanes];
  memcpy(parts, &v, sizeof v);
  AJOUR_UNROLL for (int step = kLanes / 2; step; step /= 2) AJOUR_UNROLL for (int i = 0; i < step; i++) parts[i] +=
      parts[i + step];
  return parts[0];
}

// Keeps the compiler from loading w again where it is used twice.
AJOUR_INLINE void in_register(Words& w) {
#if defined(__AVX512F__)
  asm("" : "+v"(w));
#elif defined(__x86_64__)
  asm("" : "+x"(w));
#else
  (void)w;
#endif
}

// ---- loads: any address; the second form reads the first `count` lanes only (0..kLanes), and the rest are zero ----

AJOUR_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecAnywhere*>(p); }
AJOUR_INLINE Words load(const uint32_t* p) { return *reinterpret_cast<const WordsAnywhere*>(p); }

AJOUR_INLINE Words load(const uint32_t* p, int count) {
#if defined(__AVX512F__)
  return (Words)_mm512_maskz_loadu_epi32((1u << count) - 1, p);
#else
  uint32_t lanes[kLanes] = {};
  for (int i = 0; i < count; i++) lanes[i] = p[i];
  return load(lanes);
#endif
}
AJOUR_INLINE Vec load(const float* p, int count) {
  return as_floats(load(reinterpret_cast<const uint32_t*>(p), count));
}

AJOUR_INLINE Halves load_halves(const void* p) { return *static_cast<const HalvesAnywhere*>(p); }
AJOUR_INLINE Halves load_halves(const void* p, int count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return (Halves)_mm256_maskz_loadu_epi16((1u << count) - 1, p);
#else
  uint16_t lanes[kLanes] = {};
  for (int i = 0; i < count; i++) lanes[i] = static_cast<const uint16_t*>(p)[i];
  return load_halves(lanes);
#endif
}

// ---- 16-bit floats: exact to float; from float to nearest even, a NaN stays a NaN ----

AJOUR_INLINE Words widen(Halves h) { return __builtin_convertvector(h, Words); }
AJOUR_INLINE Vec from_bf16(Halves h) { return as_floats(widen(h) << 16); }

AJOUR_INLINE Vec from_fp16(Halves h) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
  return _mm256_cvtph_ps((__m128i)h);
#else
  const Words w = widen(h), magnitude = (w & 0x7fffu) << 13;
  const Words scaled = as_words(as_floats(magnitude) * 0x1p112f);  // also makes subnormals normal
  return as_floats(((w & 0x8000u) << 16) | ((w & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : scaled));
#endif
}

AJOUR_INLINE Halves to_bf16(Vec v) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh(v);
#else
  const Words w = as_words(v), rounded = (w + 0x7fffu + ((w >> 16) & 1u)) >> 16;
  return __builtin_convertvector((w & 0x7fffffffu) > 0x7f800000u ? (w >> 16) | 0x40u : rounded, Halves);
#endif
}

AJOUR_INLINE Halves to_fp16(Vec v) {
#if defined(__AVX512F__)
  return (Halves)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (Halves)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Words w = as_words(v), magnitude = w & 0x7fffffffu;
  const Words normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Words subnormal = as_words(as_floats(magnitude) + 0.5f) - 0x3f000000u;  // the addition rounds at 2^-24
  Words half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? broadcast(0x7c00u) : half;
  half = magnitude > 0x7f800000u ? ((magnitude >> 13) & 0x3ffu) | 0x7e00u : half;
  return __builtin_convertvector(half | ((w >> 16) & 0x8000u), Halves);
#endif
}

AJOUR_INLINE Vec load(const BFloat16* p) { return from_bf16(load_halves(p)); }
AJOUR_INLINE Vec load(const BFloat16* p, int count) { return from_bf16(load_halves(p, count)); }
AJOUR_INLINE Vec load(const Float16* p) { return from_fp16(load_halves(p)); }
AJOUR_INLINE Vec load(const Float16* p, int count) { return from_fp16(load_halves(p, count)); }

// ---- stores: any address; the second form writes the first `count` lanes only ----

AJOUR_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecAnywhere*>(p) = v; }
AJOUR_INLINE void store(uint32_t* p, Words w) { *reinterpret_cast<WordsAnywhere*>(p) = w; }
AJOUR_INLINE void store(uint32_t* p, Words w, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_epi32(p, (1u << count) - 1, (__m512i)w);
#else
  uint32_t lanes[kLanes];
  store(lanes, w);
  for (int i = 0; i < count; i++) p[i] = lanes[i];
#endif
}
AJOUR_INLINE void store(float* p, Vec v, int count) { store(reinterpret_cast<uint32_t*>(p), as_words(v), count); }

AJOUR_INLINE void store_halves(void* p, Halves h) { *static_cast<HalvesAnywhere*>(p) = h; }
AJOUR_INLINE void store_halves(void* p, Halves h, int count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  _mm256_mask_storeu_epi16(p, (1u << count) - 1, (__m256i)h);
#else
  uint16_t lanes[kLanes];
  store_halves(lanes, h);
  for (int i = 0; i < count; i++) static_cast<uint16_t*>(p)[i] = lanes[i];
#endif
}
AJOUR_INLINE void store(BFloat16* p, Vec v) { store_halves(p, to_bf16(v)); }
AJOUR_INLINE void store(BFloat16* p, Vec v, int count) { store_halves(p, to_bf16(v), count); }
AJOUR_INLINE void store(Float16* p, Vec v) { store_halves(p, to_fp16(v)); }
AJOUR_INLINE void store(Float16* p, Vec v, int count) { store_halves(p, to_fp16(v), count); }

// ---- pairs: a word holds two bf16, the first one in its low half ----

AJOUR_INLINE Vec low_bf16(Words pairs) { return as_floats(pairs << 16); }
AJOUR_INLINE Vec high_bf16(Words pairs) { return as_floats(pairs & 0xffff0000u); }

// sum + a.low * b.low + a.high * b.high; vdpbf16ps flushes subnormals, the other forms don't.
AJOUR_INLINE Vec dot_pairs(Vec sum, Words a, Words b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
  return fma(high_bf16(a), high_bf16(b), fma(low_bf16(a), low_bf16(b), sum));
#endif
}

// ---- moving lanes ----

// Lane i of the result is lane index[i] of v; only the low log2(kLanes) bits of an index count.
AJOUR_INLINE Words permute(Words v, Words index) {
#if defined(__AVX512F__)
  return (Words)_mm512_permutexvar_epi32((__m512i)index, (__m512i)v);
#elif defined(__AVX2__)
  return (Words)_mm256_permutevar8x32_epi32((__m256i)v, (__m256i)index);
#else
  Words out;
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++) out[i] = v[index[i] & (kLanes - 1)];
  return out;
#endif
}
AJOUR_INLINE Vec permute(Vec v, Words index) { return as_floats(permute(as_words(v), index)); }

// The same within each group of four lanes; only the low two bits of an index count.
AJOUR_INLINE Vec permute_in_fours(Vec v, Words index) {
#if defined(__AVX512F__)
  return _mm512_permutevar_ps(v, (__m512i)index);
#elif defined(__AVX2__)
  return _mm256_permutevar_ps(v, (__m256i)index);
#else
  return permute(v, index);
#endif
}

// Two vectors of kLanes words below 2^16 as one of halves, and what undoes it for two such vectors of halves: `low`
// gets the pairs (first, second) of the lanes that came from `a`, `high` those from `b`. Only where dot_pairs is fast.
AJOUR_INLINE Words join_halves(Words a, Words b) {
#if defined(__AVX512BW__)
  return (Words)_mm512_packus_epi32((__m512i)a, (__m512i)b);
#else
  (void)a;
  return b;
#endif
}
AJOUR_INLINE void zip_halves(Words first, Words second, Words& low, Words& high) {
#if defined(__AVX512BW__)
  low = (Words)_mm512_unpacklo_epi16((__m512i)first, (__m512i)second);
  high = (Words)_mm512_unpackhi_epi16((__m512i)first, (__m512i)second);
#else
  low = high = first ^ second;
#endif
}

// Transposes kLanes vectors of kLanes words in place.
AJOUR_INLINE void transpose(Words (&rows)[kLanes]) {
#if defined(__AVX512F__)
  __m512i r[16], t[16];
  AJOUR_UNROLL for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32((__m512i)rows[2 * i], (__m512i)rows[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32((__m512i)rows[2 * i], (__m512i)rows[2 * i + 1]);
  }
  AJOUR_UNROLL for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  AJOUR_UNROLL for (int i = 0; i < 4; i++) {  // now in units of four lanes
    const __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd), d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    rows[i] = (Words)_mm512_shuffle_i32x4(a, b, 0x88);
    rows[8 + i] = (Words)_mm512_shuffle_i32x4(a, b, 0xdd);
    rows[4 + i] = (Words)_mm512_shuffle_i32x4(c, d, 0x88);
    rows[12 + i] = (Words)_mm512_shuffle_i32x4(c, d, 0xdd);
  }
#elif defined(__AVX2__)
  __m256i t[8], r[8];
  AJOUR_UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32((__m256i)rows[i], (__m256i)rows[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32((__m256i)rows[i], (__m256i)rows[i + 1]);
  }
  AJOUR_UNROLL for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  AJOUR_UNROLL for (int i = 0; i < 4; i++) {
    rows[i] = (Words)_mm256_permute2x128_si256(r[i], r[4 + i], 0x20);
    rows[4 + i] = (Words)_mm256_permute2x128_si256(r[i], r[4 + i], 0x31);
  }
#else
  const Words a = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5),
              b = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const Words c = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5),
              d = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  rows[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  rows[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  rows[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
#endif
}

}  // namespace ajour::cpu::AJOUR_ISA
