#include "cpu/masked_lanes.h"
#include "cpu/masked_update.h"
#include "cpu/update_chunks.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

AJOUR_INLINE Vec magnitude(Vec v) { return as_floats(as_words(v) & 0x7fffffffu); }

// Sums of 16 vectors in float, then in double: a square's error stays below that of adding them one by one.
template <class T, int Power>
double norm_of_chunk(const UpdateRow& row, int64_t begin, int64_t entries) {
  const T* const grad = static_cast<const T*>(row.grad);
  double total = 0;
  Vec part = zero();
  int terms = 0;
  for (int64_t i = begin; i < begin + entries; i += kLanes) {
    const int64_t left = begin + entries - i;
    const int count = left < kLanes ? int(left) : kLanes;
    const uint32_t mask = row.bits ? lane_mask(row.bits, i, left) : kAllLanes;
    if (!mask) continue;
    const Vec g = select(count == kLanes ? load(grad + i) : load(grad + i, count), mask);
    if constexpr (Power == 0) {
      const Vec size = magnitude(g);
      part = (size > part) | (size != size) ? size : part;  // a NaN stays
      continue;
    }
    part = Power == 1 ? part + magnitude(g) : fma(g, g, part);
    if (++terms == 16) total += sum(part), part = zero(), terms = 0;
  }
  if constexpr (Power != 0) return total + sum(part);
  float lanes[kLanes];
  memcpy(lanes, &part, sizeof part);
  for (float lane : lanes) total = lane > total || lane != lane ? lane : total;
  return total;
}

template <class T>
void norms(const MaskedNorm& a) {
  for_chunks(a.rows, a.count, [&](int64_t which, int64_t begin, int64_t entries, int64_t place) {
    const UpdateRow& row = a.rows[which];
    a.partial[place] = a.power == 2   ? norm_of_chunk<T, 2>(row, begin, entries)
                       : a.power == 1 ? norm_of_chunk<T, 1>(row, begin, entries)
                                      : norm_of_chunk<T, 0>(row, begin, entries);
  });
}

template <class Word>
void clear(const MaskedClear& a) {
  for_chunks(a.rows, a.count, [&](int64_t which, int64_t begin, int64_t entries, int64_t) {
    const UpdateRow& row = a.rows[which];
    Word* const grad = static_cast<Word*>(row.grad);
    for (int64_t i = begin; row.bits && i < begin + entries; i++) {
      grad[i] = (row.bits[i / 8] >> (i % 8)) & 1 ? grad[i] : Word{0};
    }
  });
}

}  // namespace

void masked_norm(const MaskedNorm& a) {
  a.type == 0 ? norms<float>(a) : a.type == 1 ? norms<BFloat16>(a) : norms<Float16>(a);
}

void masked_clear(const MaskedClear& a) { a.itemsize == 4 ? clear<uint32_t>(a) : clear<uint16_t>(a); }

}  // namespace ajour::cpu::AJOUR_ISA
