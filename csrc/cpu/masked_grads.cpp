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

// Keeps the lanes whose bit is set, of words whatever they mean.
AJOUR_INLINE void clear_lanes(uint32_t* p, uint32_t mask) { store(p, as_words(select(as_floats(load(p)), mask))); }
AJOUR_INLINE void clear_lanes(uint16_t* p, uint32_t mask) {
  const Words kept = as_words(select(as_floats(widen(load_halves(p))), mask));
  store_halves(p, __builtin_convertvector(kept, Halves));
}

template <class Word>
void clear(const MaskedClear& a) {
  constexpr int kWord = 64;  // entries whose bits are looked at together
  for_chunks(a.rows, a.count, [&](int64_t which, int64_t begin, int64_t entries, int64_t) {
    const UpdateRow& row = a.rows[which];
    if (!row.bits) return;
    Word* const grad = static_cast<Word*>(row.grad);
    const int64_t end = begin + entries, whole = end - entries % kWord;
    for (int64_t i = begin; i < whole; i += kWord) {
      const uint64_t word = mask_word(row.bits, i, kWord);
      if (!word) memset(grad + i, 0, kWord * sizeof(Word));
      if (!word || !~word) continue;
      AJOUR_UNROLL for (int lane = 0; lane < kWord; lane += kLanes) {
        clear_lanes(grad + i + lane, uint32_t(word >> lane) & kAllLanes);
      }
    }
    for (int64_t i = whole; i < end; i++) {
      if (!((row.bits[i / 8] >> (i % 8)) & 1)) grad[i] = 0;
    }
  });
}

}  // namespace

void masked_norm(const MaskedNorm& a) {
  a.type == 0 ? norms<float>(a) : a.type == 1 ? norms<BFloat16>(a) : norms<Float16>(a);
}

void masked_clear(const MaskedClear& a) { a.itemsize == 4 ? clear<uint32_t>(a) : clear<uint16_t>(a); }

}  // namespace ajour::cpu::AJOUR_ISA
