#include "layout/nm_slabs.h"

#include <algorithm>
#include <cstring>

#include "layout/nm.h"
#include "memory/check.h"
#include "memory/parallel.h"

namespace ajour {
namespace {

// Packed positions of a canonical row, least significant bit first.
uint32_t position(const uint8_t* row, int64_t entry, int bits) {
  const int64_t bit = entry * bits, shift = bit % 8;
  uint32_t found = row[bit / 8];
  if (shift + bits > 8) found |= uint32_t(row[bit / 8 + 1]) << 8;
  return found >> shift & ((1u << bits) - 1);
}

void set_position(uint8_t* row, int64_t entry, int bits, uint32_t place) {  // in bytes that were zero
  const int64_t bit = entry * bits, shift = bit % 8;
  row[bit / 8] |= uint8_t(place << shift);
  if (shift + bits > 8) row[bit / 8 + 1] |= uint8_t(place << shift >> 8);
}

// Where one group of a row stands in its slab: its first value, and its positions as a field of a word.
struct GroupPlace {
  int value, word, shift;
};

// Group `group` of a slab's row, 2:4: `value` addresses both values, the field is a nibble.
GroupPlace hardware_place(int row, int group) {
  const int fragment = row / 16, step = group / 8, within = group % 8;  // groups of 4 columns, 8 in a step
  const int lane = row % 8 * 4 + within % 4;  // compressed columns 2c, 2c + 1 of the half that `within / 4` names
  const int reg = within / 4 * 2 + row % 16 / 8;
  const int holder = row % 8 * 4 + fragment % 2 * 2 + within / 4;
  return {NMSlabs::fragment_at(step, fragment, lane) + reg * 4,
          NMSlabs::metadata_at(holder) + (2 * step + fragment / 2) * 4, within % 4 * 4 + row % 16 / 8 * 16};
}

uint32_t load_word(const uint8_t* at) {
  uint32_t word;
  std::memcpy(&word, at, 4);
  return word;
}

void or_word(uint8_t* at, uint32_t bits) {
  const uint32_t word = load_word(at) | bits;
  std::memcpy(at, &word, 4);
}

// Calls visit(panel, its rows) for each panel of the weight, on torch's threads.
template <class Visit>
void each_panel(const NMSlabs& s, const Visit& visit) {
  parallel_for(0, s.panels(), 1, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) visit(panel, int(std::min<int64_t>(64, s.n - panel * 64)));
  });
}

// Calls visit(group, its slab, its place) for each group of a row; a slab's 16 places are the same in every slab.
template <class Byte, class Visit>
void each_group(const NMSlabs& s, int row, Byte* panel, const Visit& visit) {
  GroupPlace places[16];
  for (int i = 0; i < 16; ++i) places[i] = hardware_place(row, i);
  const int64_t groups = ceil_div(s.k, 4);
  for (int64_t first = 0; first < groups; first += 16, panel += s.slab_bytes) {
    const int inside = int(std::min<int64_t>(16, groups - first));
    for (int i = 0; i < inside; ++i) visit(first + i, panel, places[i]);
  }
}

void pack_hardware_row(const NMSlabs& s, const uint16_t* values, const uint8_t* positions, int row, uint8_t* panel) {
  each_group(s, row, panel, [&](int64_t i, uint8_t* slab, const GroupPlace& place) {
    std::memcpy(slab + place.value, values + 2 * i, 4);
    or_word(slab + place.word, uint32_t(positions[i / 2] >> (i % 2 * 4) & 15) << place.shift);
  });
}

void unpack_hardware_row(const NMSlabs& s, const uint8_t* panel, int row, uint16_t* values, uint8_t* positions) {
  each_group(s, row, panel, [&](int64_t i, const uint8_t* slab, const GroupPlace& place) {
    std::memcpy(values + 2 * i, slab + place.value, 4);
    positions[i / 2] |= uint8_t((load_word(slab + place.word) >> place.shift & 15) << (i % 2 * 4));
  });
}

// Groups that no row or no column of the weight has still need a legal code: the smallest positions, as everywhere.
void pad_hardware(const NMSlabs& s, int rows, int64_t slabs, uint8_t* panel) {
  const int64_t groups = ceil_div(s.k, 4);
  for (int row = 0; row < kSlabRows; ++row) {
    for (int64_t i = row < rows ? groups : 0; i < slabs * 16; ++i) {
      const GroupPlace place = hardware_place(row, int(i % 16));
      or_word(panel + i / 16 * s.slab_bytes + place.word, 4u << place.shift);
    }
  }
}

// Calls visit(entry of the canonical row, byte offset of its value, of its word, shift) for each value of a row.
template <class Visit>
void each_value(const NMSlabs& s, int row, const Visit& visit) {
  const int64_t kept = ceil_div(s.k, s.group) * s.keep;
  const int in_row = s.row_values, per_word = s.per_word, bits = NMSlabs::position_bits(s.group);
  const int base = (row / 16 * 2 + row % 16 / 8) * in_row;
  int64_t entry = 0;
  for (int64_t slab = 0; slab < s.slabs(); ++slab) {
    const int64_t begin = slab * s.slab_bytes;
    for (int c = 0; c < 4; ++c) {
      const int lane = row % 8 * 4 + c;
      for (int i = 0; i < in_row; ++i, ++entry) {
        const int value = base + i;
        if (entry == kept) return;
        visit(entry, begin + NMSlabs::value_at(value, lane), begin + s.places_at(value / per_word, lane),
              value % per_word * bits);
      }
    }
  }
}

}  // namespace

NMSlabs nm_slabs(int64_t n, int64_t k, int keep, int group) {
  const bool known = group == 4 || group == 8 || group == 16 || group == 32;
  if (keep < 1 || keep >= group || !known) {
    refuse<KernelError>("slabs need 1 <= keep < group and a group of 4, 8, 16 or 32, found ", keep, ":", group);
  }
  NMSlabs s{n, k, keep, group, 128, 32 / NMSlabs::position_bits(group), 32 / group * keep, 0, 0};
  const int values = 8 * s.row_values;  // of a lane
  s.value_bytes = values * 2 * kWarp;
  s.slab_bytes = s.value_bytes + int(ceil_div(values, s.per_word)) * 4 * kWarp;
  if (s.in_hardware()) {
    s.columns = 64;
    s.value_bytes = 4096;
    s.slab_bytes = 4608;
  }
  return s;
}

void pack_nm_slabs(const NMSlabs& s, const void* values, const uint8_t* positions, uint8_t* slabs) {
  const NMLayout canonical{s.keep, s.group};
  const int64_t kept = canonical.kept(s.k), width = canonical.position_bytes(s.k), size = s.slabs() * s.slab_bytes;
  const int bits = NMSlabs::position_bits(s.group);
  each_panel(s, [&](int64_t panel, int rows) {
    uint8_t* out = slabs + panel * size;
    std::memset(out, 0, size_t(size));
    for (int row = 0; row < rows; ++row) {
      const uint16_t* from = static_cast<const uint16_t*>(values) + (panel * 64 + row) * kept;
      const uint8_t* places = positions + (panel * 64 + row) * width;
      if (s.in_hardware()) {
        pack_hardware_row(s, from, places, row, out);
        continue;
      }
      each_value(s, row, [&](int64_t entry, int64_t value, int64_t word, int shift) {
        std::memcpy(out + value, from + entry, 2);
        or_word(out + word, position(places, entry, bits) << shift);
      });
    }
    if (s.in_hardware()) pad_hardware(s, rows, s.slabs(), out);
  });
  uint8_t* zeros = slabs + s.panels() * size;
  std::memset(zeros, 0, size_t(s.slab_bytes));
  if (s.in_hardware()) pad_hardware(s, 0, 1, zeros);
}

void unpack_nm_slabs(const NMSlabs& s, const uint8_t* slabs, void* values, uint8_t* positions) {
  const NMLayout canonical{s.keep, s.group};
  const int64_t kept = canonical.kept(s.k), width = canonical.position_bytes(s.k), size = s.slabs() * s.slab_bytes;
  const int bits = NMSlabs::position_bits(s.group);
  each_panel(s, [&](int64_t panel, int rows) {
    const uint8_t* in = slabs + panel * size;
    for (int row = 0; row < rows; ++row) {
      uint16_t* to = static_cast<uint16_t*>(values) + (panel * 64 + row) * kept;
      uint8_t* places = positions + (panel * 64 + row) * width;
      std::memset(places, 0, size_t(width));
      if (s.in_hardware()) {
        unpack_hardware_row(s, in, row, to, places);
        continue;
      }
      each_value(s, row, [&](int64_t entry, int64_t value, int64_t word, int shift) {
        std::memcpy(to + entry, in + value, 2);
        set_position(places, entry, bits, load_word(in + word) >> shift & ((1u << bits) - 1));
      });
    }
  });
}

}  // namespace ajour
