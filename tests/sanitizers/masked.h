// Included ahead of every unit of `make sanitize`: gcc does not instrument accesses through a mask or an index vector,
// so here each lane that such an intrinsic touches is an access of its own.
#pragma once
#if defined(__AVX2__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

template <class Lane, class Vector>
inline Vector read_lanes(uint64_t mask, const void* p, bool expand = false) {
  Lane lanes[sizeof(Vector) / sizeof(Lane)] = {};
  auto* next = static_cast<const unsigned char*>(p);
  for (Lane& lane : lanes) {
    if (mask & 1) std::memcpy(&lane, next, sizeof lane);
    if (mask & 1 || !expand) next += sizeof lane;
    mask >>= 1;
  }
  Vector v;
  std::memcpy(&v, lanes, sizeof v);
  return v;
}

template <class Lane, class Vector>
inline void write_lanes(void* p, uint64_t mask, Vector v) {
  Lane lanes[sizeof(Vector) / sizeof(Lane)];
  std::memcpy(lanes, &v, sizeof v);
  for (unsigned i = 0; i < sizeof(Vector) / sizeof(Lane); i++) {
    if (mask >> i & 1) std::memcpy(static_cast<unsigned char*>(p) + i * sizeof(Lane), lanes + i, sizeof(Lane));
  }
}

inline __m256 gather(const float* table, __m256i index) {
  int32_t places[8];
  float lanes[8];
  std::memcpy(places, &index, sizeof index);
  for (int i = 0; i < 8; i++) lanes[i] = table[places[i]];
  __m256 v;
  std::memcpy(&v, lanes, sizeof v);
  return v;
}

}  // namespace

#undef _mm256_i32gather_ps  // the last argument is always 4, the size of a float
#define _mm256_i32gather_ps(table, index, size) (gather(table, index))
#define _mm512_maskz_loadu_epi32(mask, p) (read_lanes<uint32_t, __m512i>(mask, p))
#define _mm512_maskz_loadu_epi16(mask, p) (read_lanes<uint16_t, __m512i>(mask, p))
#define _mm256_maskz_loadu_epi16(mask, p) (read_lanes<uint16_t, __m256i>(mask, p))
#define _mm512_maskz_expandloadu_ps(mask, p) (read_lanes<float, __m512>(mask, p, true))
#define _mm512_mask_storeu_epi32(p, mask, v) (write_lanes<uint32_t, __m512i>(p, mask, v))
#define _mm256_mask_storeu_epi16(p, mask, v) (write_lanes<uint16_t, __m256i>(p, mask, v))
#endif
