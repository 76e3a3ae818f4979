// What one thread of a device writes when N:M slabs are packed or unpacked: a word of a slab, a value or a byte of a
// canonical row, each from wherever it stands on the other side. nm_slabs.cpp packs the same order row by row, which
// suits a CPU; a test holds the two together.
#pragma once
#include "layout/nm_slabs.h"

namespace ajour {

// The canonical form (layout/nm.h), whose positions are written least significant bit first.
struct NMRows {
  const uint16_t* values;  // [n, kept]
  const uint8_t* positions;
  int64_t n, kept, width;
  int bits;

  AJOUR_BOTH uint32_t value(int64_t row, int64_t entry) const {
    return row < n && entry < kept ? values[row * kept + entry] : 0;
  }
  AJOUR_BOTH uint32_t place(int64_t row, int64_t entry) const {
    if (row >= n || entry >= kept) return 0;
    const uint8_t* at = positions + row * width + entry * bits / 8;
    const int shift = int(entry * bits % 8);
    uint32_t found = at[0];
    if (shift + bits > 8) found |= uint32_t(at[1]) << 8;
    return found >> shift & ((1u << bits) - 1);
  }
  // Of 2:4, both places of a group; where there is none, the code of places 0 and 1.
  AJOUR_BOTH uint32_t code(int64_t row, int64_t group) const {
    return row < n && 2 * group < kept ? uint32_t(positions[row * width + group / 2] >> group % 2 * 4) & 15 : 4;
  }
};

// Where an element of a slab belongs: a row of the panel, and an entry of the slab's part of that row.
struct SlabEntry {
  int row, entry;
};

// Value `value` of a lane; not for 2:4.
AJOUR_BOTH SlabEntry entry_of(const NMSlabs& s, int value, int lane) {
  const int half = value / s.row_values;  // rows 0, 8, 16.. of the panel
  return {half * 8 + lane / 4, lane % 4 * s.row_values + value % s.row_values};
}

// Word `word` of slab `slab`; rows that the weight lacks, as those of the slab after the last one, are zeros.
AJOUR_BOTH uint32_t packed_word(const NMSlabs& s, const NMRows& from, int64_t slab, int word) {
  const int64_t first_row = slab / s.slabs() * kSlabRows, first_entry = slab % s.slabs() * s.slab_entries();
  const int in_values = word - s.value_bytes / 4;
  if (s.in_hardware() && in_values < 0) {
    const int step = word / (4 * kWarp * kFragments), fragment = word / (4 * kWarp) % kFragments;
    const int lane = word / 4 % kWarp, reg = word % 4;
    const int64_t row = first_row + fragment * kFragmentRows + lane / 4 + reg % 2 * 8;
    const int64_t entry = first_entry + 2 * (step * 8 + reg / 2 * 4 + lane % 4);
    return from.value(row, entry) | from.value(row, entry + 1) << 16;
  }
  uint32_t found = 0;
  if (s.in_hardware()) {
    const int holder = in_values / 4, step = in_values % 4 / 2;
    const int fragment = in_values % 2 * 2 + holder % 4 / 2;
    for (int i = 0; i < 8; ++i) {
      const int64_t row = first_row + fragment * kFragmentRows + holder / 4 + i / 4 * 8;
      found |= from.code(row, first_entry / 2 + step * 8 + holder % 2 * 4 + i % 4) << 4 * i;
    }
    return found;
  }
  const int lane = word % kWarp, values = 8 * s.row_values;  // of the lane
  const int bits = in_values < 0 ? 16 : from.bits, per_word = in_values < 0 ? 2 : s.per_word;
  const int first = (in_values < 0 ? word : in_values) / kWarp * per_word;
  for (int i = 0; i < per_word && first + i < values; ++i) {
    const SlabEntry at = entry_of(s, first + i, lane);
    const int64_t row = first_row + at.row, entry = first_entry + at.entry;
    found |= (in_values < 0 ? from.value(row, entry) : from.place(row, entry)) << bits * i;
  }
  return found;
}

// The way back: where entry `entry` of a row of the weight stands.
struct PackedEntry {
  int64_t value, word;  // byte offsets: of its 16 bits, of the word with its place
  int shift;            // of the place in that word
};

AJOUR_BOTH PackedEntry place_of(const NMSlabs& s, int64_t row, int64_t entry) {
  const int per_slab = s.slab_entries(), inside = int(entry % per_slab), in_panel = int(row % kSlabRows);
  const int64_t begin = (row / kSlabRows * s.slabs() + entry / per_slab) * s.slab_bytes;
  const int bits = NMSlabs::position_bits(s.group), lower = in_panel % kFragmentRows / 8;
  if (s.in_hardware()) {
    const int fragment = in_panel / kFragmentRows, step = inside / 16, within = inside / 2 % 8;
    const int lane = in_panel % 8 * 4 + within % 4, holder = in_panel % 8 * 4 + fragment % 2 * 2 + within / 4;
    return {begin + NMSlabs::fragment_at(step, fragment, lane) + (within / 4 * 2 + lower) * 4 + inside % 2 * 2,
            begin + NMSlabs::metadata_at(holder) + (2 * step + fragment / 2) * 4,
            within % 4 * 4 + lower * 16 + inside % 2 * bits};
  }
  const int lane = in_panel % 8 * 4 + inside / s.row_values;
  const int value = (in_panel / kFragmentRows * 2 + lower) * s.row_values + inside % s.row_values;
  return {begin + NMSlabs::value_at(value, lane), begin + s.places_at(value / s.per_word, lane),
          value % s.per_word * bits};
}

// Byte `byte` of a canonical row's positions.
AJOUR_BOTH uint8_t position_byte(const NMSlabs& s, const uint8_t* slabs, int64_t kept, int64_t row, int64_t byte) {
  const int bits = NMSlabs::position_bits(s.group);
  uint32_t found = 0;
  for (int64_t entry = byte * 8 / bits; entry < kept && entry * bits < byte * 8 + 8; ++entry) {
    const PackedEntry at = place_of(s, row, entry);
    const uint32_t place = *reinterpret_cast<const uint32_t*>(slabs + at.word) >> at.shift & ((1u << bits) - 1);
    const int shift = int(entry * bits - byte * 8);  // negative where the byte before holds its lowest bits
    found |= shift < 0 ? place >> -shift : place << shift;
  }
  return uint8_t(found);
}

}  // namespace ajour
