// From a bitmap and the values of its set bits to vectors of weights.
//
// On Zen 5 vpexpandd takes 5 cycles for 16 lanes; to count, for each lane, the set bits below its own (vpopcntd) and to
// permute takes 2, and is bound by loads, of which an unaligned one counts twice: the fewer the better. Where there is
// no weight no product may be made, as x may hold Inf there: every form masks those lanes.
#pragma once
#include "cpu/simd.h"
#include "memory/float16.h"

namespace ajour::cpu::AJOUR_ISA {

AJOUR_INLINE float to_float(float value) { return value; }
AJOUR_INLINE float to_float(BFloat16 value) { return bfloat16_to_float(value.bits); }
AJOUR_INLINE float to_float(Float16 value) { return float16_to_float(value.bits); }

// Decodes 32 columns of a row at once, to be multiplied with elements X of x: kVectors vectors of kColumns columns.
template <class X>
struct DecoderOf;

#if defined(__AVX512F__)

template <>
struct DecoderOf<float> {
  static constexpr int kColumns = 16, kVectors = 2;
  struct Decoded {
    __mmask16 live;
    Vec weights;
  };

  // Their bits are *at, their values begin at p; kFew expects at most 16 of them.
  template <bool kFew, class T>
  static AJOUR_INLINE_MEMBER void decode(const uint32_t* at, const T* p, Decoded (&out)[kVectors]) {
    const uint32_t bits = *at;
    out[0].live = reinterpret_cast<const uint16_t*>(at)[0];  // kmov from memory: from a register it takes a whole cycle
    out[1].live = reinterpret_cast<const uint16_t*>(at)[1];
    Vec values = load(p);
#if defined(__AVX512VPOPCNTDQ__)
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                  one = _mm512_set1_epi32(1);
    const __m512i below = _mm512_sub_epi32(_mm512_sllv_epi32(one, lane), one);
    const __m512i below_upper = _mm512_or_si512(_mm512_slli_epi32(below, 16), _mm512_set1_epi32(0xffff));
    const __m512i spread = _mm512_set1_epi32(int(*at));
    const __m512i place = _mm512_popcnt_epi32(_mm512_and_si512(spread, below));
    const __m512i upper = _mm512_popcnt_epi32(_mm512_and_si512(spread, below_upper));
    out[0].weights = _mm512_maskz_permutexvar_ps(out[0].live, place, values);
    if (kFew && __builtin_expect(__builtin_popcount(bits) <= 16, 1)) {
      out[1].weights = _mm512_maskz_permutexvar_ps(out[1].live, upper, values);
    } else {
      out[1].weights = _mm512_maskz_permutex2var_ps(out[1].live, values, upper, load(p + 16));
    }
#else
    Vec next = load(p + __builtin_popcount(bits & 0xffff));
    asm("" : "+v"(values), "+v"(next));  // from a register: vpexpandd from memory is slow on AMD
    out[0].weights = _mm512_maskz_expand_ps(out[0].live, values);
    out[1].weights = _mm512_maskz_expand_ps(out[1].live, next);
#endif
  }

  static AJOUR_INLINE_MEMBER Vec load_x(const float* x) { return load(x); }
  static AJOUR_INLINE_MEMBER Vec add_products(const Decoded& d, Vec x, Vec sum) {
    return _mm512_mask3_fmadd_ps(d.weights, x, sum, d.live);
  }
};

#elif defined(__AVX2__)

// For each byte: at its set bits 0x80 | how many are set below, 0 elsewhere.
struct Places {
  constexpr Places() : of() {
    for (int byte = 0; byte < 256; byte++) {
      for (int bit = 0, count = 0; bit < 8; bit++) of[byte][bit] = byte >> bit & 1 ? uint8_t(0x80 | count++) : 0;
    }
  }
  uint8_t of[256][8];
};
static constexpr Places kPlaces;

template <>
struct DecoderOf<float> {
  static constexpr int kColumns = 8, kVectors = 4;
  struct Decoded {
    Vec live;  // all bits set where there is a weight
    Vec weights;
  };

  template <bool kFew, class T>
  static AJOUR_INLINE_MEMBER void decode(const uint32_t* at, const T* p, Decoded (&out)[kVectors]) {
    AJOUR_UNROLL for (int q = 0; q < kVectors; q++) {
      const uint8_t byte = uint8_t(*at >> 8 * q);
      const __m256i place = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.of[byte])));
      out[q].live = _mm256_castsi256_ps(_mm256_srai_epi32(place, 31));
      out[q].weights = _mm256_and_ps(_mm256_permutevar8x32_ps(load(p), place), out[q].live);
      p += __builtin_popcount(byte);
    }
  }

  static AJOUR_INLINE_MEMBER Vec load_x(const float* x) { return load(x); }
  static AJOUR_INLINE_MEMBER Vec add_products(const Decoded& d, Vec x, Vec sum) {
    return fma(d.weights, _mm256_and_ps(x, d.live), sum);
  }
};

#endif

#if defined(__AVX512BF16__) && defined(__AVX512BITALG__)
constexpr bool kDecodesPairs = true;

template <>
struct DecoderOf<BFloat16> {
  static constexpr int kColumns = 32, kVectors = 1;
  struct Decoded {
    __mmask32 live;
    Words weights;
  };

  // Lanes 0 to 15 count the lower 16 bits, lanes 16 to 31 the upper ones and all of the lower.
  template <bool kFew>
  static AJOUR_INLINE_MEMBER void decode(const uint32_t* at, const BFloat16* p, Decoded (&out)[kVectors]) {
    const uint32_t bits = *at;
    const __m512i halves = _mm512_inserti64x4(_mm512_set1_epi16(0x0100), _mm256_set1_epi16(0x0302), 1);
    const __m512i spread = _mm512_shuffle_epi8(_mm512_set1_epi32(int(*at)), halves);
    const __m256i lane = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                  one = _mm256_set1_epi16(1);
    const __m512i below = _mm512_broadcast_i64x4(_mm256_sub_epi16(_mm256_sllv_epi16(one, lane), one));
    const __m512i count = _mm512_popcnt_epi16(_mm512_and_si512(spread, below));
    const __m512i lower = _mm512_set1_epi16(int16_t(__builtin_popcount(bits & 0xffff)));
    const __m512i place = _mm512_mask_add_epi16(count, 0xffff0000u, count, lower);
    asm("kmovd %1, %0" : "=k"(out[0].live) : "m"(*at));  // from a register it takes a whole cycle
    out[0].weights = (Words)_mm512_maskz_permutexvar_epi16(out[0].live, place, _mm512_loadu_si512(p));
  }

  // The row of x may end before the 32 columns do: only what has a weight may be read, and multiplied.
  static AJOUR_INLINE_MEMBER const BFloat16* load_x(const BFloat16* x) { return x; }
  static AJOUR_INLINE_MEMBER Vec add_products(const Decoded& d, const BFloat16* x, Vec sum) {
    return dot_pairs(sum, d.weights, (Words)_mm512_maskz_loadu_epi16(d.live, x));
  }
};
#else
constexpr bool kDecodesPairs = false;
#endif

}  // namespace ajour::cpu::AJOUR_ISA
