// How one slot of an N:M panel (layout/nm_panels.h) meets a table of x: decode the codes, choose columns, multiply,
// add. A form offers Value (an element of the stored values), X (of a table), kUnit (lanes stored together: one slot,
// or two interleaved), kWindows and kColumns (windows and columns of a table) and accumulate().
#pragma once
#include "cpu/nm_codes.h"

namespace ajour::cpu::AJOUR_ISA {

// From decoded codes to what choose() takes; codes of two bits count from column `base`.
template <int kBits>
AJOUR_INLINE Words index_of(Words codes, [[maybe_unused]] uint32_t base) {
#if defined(__AVX512F__)
  return kBits == 2 ? (codes & 3u) | base : codes;  // the permutes ignore the rest
#else
  return kBits == 2 ? codes : codes & (kBits == 4 ? 15u : 31u);
#endif
}

// Lane i: table[index[i]] of 16 columns (32 for codes of 8 bits).
template <int kBits>
AJOUR_INLINE Vec choose(const float* table, Words index, [[maybe_unused]] uint32_t base) {
#if defined(__AVX512F__)
  if (kBits == 8) return _mm512_permutex2var_ps(load(table), (__m512i)index, load(table + 16));
  return permute(load(table), index);
#else
  if (kBits == 2) {
#if defined(__AVX2__)
    return permute_in_fours((Vec)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(table + base)), index);
#else
    return permute_in_fours(load(table + base), index);
#endif
  }
#if defined(__AVX2__)
  if (kBits == 4) return (index & 8u) != 0u ? permute(load(table + 8), index) : permute(load(table), index);
  return _mm256_i32gather_ps(table, (__m256i)index, 4);
#else
  Vec chosen;
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++) chosen[i] = table[index[i]];
  return chosen;
#endif
#endif
}

// A slot of any values, in float32.
template <class T, int kCodeBits>
struct Single {
  using Value = T;
  using X = float;
  static constexpr int kBits = kCodeBits, kUnit = 16, kWindows = 1, kColumns = kBits == 8 ? 32 : 16;

  template <int kTokens>
  static AJOUR_INLINE_MEMBER void accumulate(Vec (&sums)[kTokens][kParts], const T* values, const uint8_t* codes,
                                             uint32_t base, const float* x) {
    AJOUR_UNROLL for (int p = 0; p < kParts; p++) {
      const Vec w = load(values + p * kLanes);
      const Words index = index_of<kBits>(decode<kBits, kBits / 2>(codes, p), base);
      AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
        sums[t][p] = fma(w, choose<kBits>(x + t * kColumns, index, base), sums[t][p]);
      }
    }
  }
};

// Two interleaved slots of bfloat16, in float32.
template <int kCodeBits>
struct Paired {
  using Value = BFloat16;
  using X = float;
  static constexpr int kBits = kCodeBits, kUnit = 32, kWindows = 1, kColumns = 16;

  template <int kTokens>
  static AJOUR_INLINE_MEMBER void accumulate(Vec (&sums)[kTokens][kParts], const BFloat16* values, const uint8_t* codes,
                                             uint32_t bases, const float* x) {
    AJOUR_UNROLL for (int p = 0; p < kParts; p++) {
      const Words w = load(reinterpret_cast<const uint32_t*>(values) + p * kLanes),
                  both = decode<kBits, kBits>(codes, p);
      const uint32_t low_base = bases & 0xffff, high_base = bases >> 16;
      const Words low = index_of<kBits>(both, low_base), high = index_of<kBits>(both >> 16, high_base);
      AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
        const float* table = x + t * kColumns;
        sums[t][p] = fma(low_bf16(w), choose<kBits>(table, low, low_base), sums[t][p]);
        sums[t][p] = fma(high_bf16(w), choose<kBits>(table, high, high_base), sums[t][p]);
      }
    }
  }
};

#if defined(__AVX512BF16__)
// Two interleaved slots of bfloat16, a pair of products at once.
template <int kCodeBits>
struct Dot {
  using Value = BFloat16;
  using X = BFloat16;
  static constexpr int kBits = kCodeBits, kUnit = 32, kWindows = 2, kColumns = 32;

  template <int kTokens>
  static AJOUR_INLINE_MEMBER void accumulate(Vec (&sums)[kTokens][kParts], const BFloat16* values, const uint8_t* codes,
                                             uint32_t bases, const BFloat16* x) {
    const Words w = load(reinterpret_cast<const uint32_t*>(values));
    const Words index = (decode<kBits, kBits>(codes, 0) & (kBits == 2 ? 0x00030003u : 0x000f000fu)) | bases;
    AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
      const Words table = load(reinterpret_cast<const uint32_t*>(x + t * kColumns));
      sums[t][0] = dot_pairs(sums[t][0], w, (Words)_mm512_permutexvar_epi16((__m512i)index, (__m512i)table));
    }
  }
};
#endif

}  // namespace ajour::cpu::AJOUR_ISA
