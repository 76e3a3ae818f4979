// The codes of an N:M panel's slot (layout/nm_panels.h), brought to the lanes of its rows.
#pragma once
#include "cpu/simd.h"

namespace ajour::cpu::AJOUR_ISA {

constexpr int kParts = 16 / kLanes;  // vectors of a panel's 16 rows

// `kCount` (1, 2 or 4) words at p, over and over.
template <int kCount>
AJOUR_INLINE Words repeat(const uint8_t* p) {
  uint32_t words[kCount];
  memcpy(words, p, sizeof words);
#if defined(__AVX512F__) || defined(__AVX2__)
  if constexpr (kCount == 4) {
    const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
#if defined(__AVX512F__)
    return (Words)_mm512_broadcast_i32x4(four);
  } else if constexpr (kCount == 2) {
    return (Words)_mm512_set1_epi64(int64_t(words[0] | uint64_t(words[1]) << 32));
#else
    return (Words)_mm256_broadcastsi128_si256(four);
  } else if constexpr (kCount == 2) {
    return (Words)_mm256_set1_epi64x(int64_t(words[0] | uint64_t(words[1]) << 32));
#endif
  } else {
    return broadcast(words[0]);
  }
#else
  Words repeated;
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++) repeated[i] = words[i % kCount];
  return repeated;
#endif
}

// The codes of a part's rows, each in the low bits of its lane (and of its lane's upper half where paired); what stands
// above them is other rows'. Row r's codes are in word r % kWords, at bit kBits * (r / kWords).
template <int kBits, int kWords>
AJOUR_INLINE Words decode(const uint8_t* codes, int part) {
  Words shift;
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++) shift[i] = uint32_t(kBits * ((part * kLanes + i) / kWords));
  return repeat<kWords>(codes) >> shift;
}

}  // namespace ajour::cpu::AJOUR_ISA
