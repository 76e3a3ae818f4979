// From a dense weight to the canonical N:M form and back as the work of a device's threads, thing i of count() each, so
// that the host can do it too. nm.cpp packs row by row, which suits a CPU; a test holds the two together.
#pragma once
#include "layout/nm.h"
#include "layout/zeros.h"

namespace ajour {

// The kept places of a group as bits, those of the non-zeros and the smallest free ones; 0 if there are too many.
template <class Word>
AJOUR_BOTH uint64_t kept_places(const NMLayout& layout, const Word* row, int64_t k, int64_t group) {
  const int64_t begin = group * layout.group;
  uint64_t kept = 0;
  for (int i = 0; i < layout.group && begin + i < k; ++i) kept |= uint64_t(!is_zero(row[begin + i])) << i;
  int free = layout.keep - count_bits(kept);
  if (free < 0) return 0;
  for (; free > 0; --free) kept |= kept + 1;  // the lowest place not yet kept
  return kept;
}

// The values of a group. One with too many non-zeros is told by `refused`.
template <class Word>
struct PackGroups {
  NMLayout layout;
  WeightView w;
  Word* values;
  int32_t* refused;

  AJOUR_BOTH int64_t count() const { return w.n * layout.groups(w.k); }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int64_t group = i % layout.groups(w.k);
    const Word* row = w.row<Word>(i / layout.groups(w.k));
    const uint64_t kept = kept_places(layout, row, w.k, group);
    Word* to = values + i * layout.keep;
    for (int place = 0; place < layout.group; ++place) {
      const int64_t column = group * layout.group + place;
      if (kept >> place & 1) *to++ = column < w.k ? plus_zero(row[column]) : Word(0);
    }
    if (!kept) *refused = 1;
  }
};

// A byte of a row's positions.
template <class Word>
struct PackPositions {
  NMLayout layout;
  WeightView w;
  uint8_t* positions;

  AJOUR_BOTH int64_t count() const { return w.n * layout.position_bytes(w.k); }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int bits = layout.position_bits();
    const int64_t first = i % layout.position_bytes(w.k) * 8;  // of the byte's bits
    const Word* row = w.row<Word>(i / layout.position_bytes(w.k));
    uint32_t found = 0;
    int64_t known = -1;
    uint64_t kept = 0;
    for (int64_t entry = first / bits; entry < layout.kept(w.k) && entry * bits < first + 8; ++entry) {
      if (entry / layout.keep != known) {
        known = entry / layout.keep;
        kept = kept_places(layout, row, w.k, known);
      }
      uint64_t left = kept;
      for (int before = 0; before < entry % layout.keep; ++before) left &= left - 1;
      const uint32_t place = uint32_t(count_bits((left & -left) - 1)) & ((1u << bits) - 1);  // of the lowest bit
      const int shift = int(entry * bits - first);  // negative where the byte before holds its lowest bits
      found |= shift < 0 ? place >> -shift : place << shift;
    }
    positions[i] = uint8_t(found);
  }
};

// The way back: the columns of a group. Whatever the positions say, nothing outside it is touched.
template <class Word>
struct UnpackGroups {
  NMLayout layout;
  const Word* values;
  const uint8_t* positions;
  WeightView w;

  AJOUR_BOTH int64_t count() const { return w.n * layout.groups(w.k); }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int64_t row = i / layout.groups(w.k), group = i % layout.groups(w.k), first = group * layout.group;
    const int bits = layout.position_bits(), columns = int(w.k - first < layout.group ? w.k - first : layout.group);
    const uint8_t* places = positions + row * layout.position_bytes(w.k);
    Word* to = w.row<Word>(row) + first;
    for (int column = 0; column < columns; ++column) to[column] = 0;
    for (int e = 0; e < layout.keep; ++e) {
      const int64_t bit = (group * layout.keep + e) * bits;
      const int shift = int(bit % 8);
      uint32_t word = places[bit / 8];
      if (shift + bits > 8) word |= uint32_t(places[bit / 8 + 1]) << 8;
      const int place = int(word >> shift & ((1u << bits) - 1));
      if (place < columns) to[place] = plus_zero(values[i * layout.keep + e]);
    }
  }
};

}  // namespace ajour
