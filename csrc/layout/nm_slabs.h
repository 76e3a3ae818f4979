// N:M slabs: a weight in an N:M pattern as the decode kernels read it, and bit for bit back (layout/slabs.h).
//
// 2:4, 64 columns a slab, for `mma.sp`, which expands it in hardware:
//   values    [2 steps of 32 columns][4 fragments][32 lanes][4 registers of 2 values]: the compressed operand A
//   metadata  [32 lanes][4 words]: word 2 * step + fragment / 2 serves that step's fragments f and f + 1; the even
//             fragment's stands in the lanes with c = 0, 1 (sparsity selector 0), the odd one's in those with c = 2, 3
//             (selector 1). Lane c % 2 = h: nibble j is the code of columns 16 h + 4 j.. of row g, nibble 4 + j of g
//             + 8.
// Other patterns with a group of 4, 8, 16 or 32, 128 columns a slab: each lane owns 32 neighbouring columns, 32 c.., of
// its eight rows, whole groups; the kernel orders x alike. A lane's values stand row by row (fragment, g or g + 8),
// group by group:
//   values    [value / 2][32 lanes][2]
//   places    [value / per_word][32 lanes] words, per_word = 32 / position bits, the first one lowest
#pragma once
#include "layout/slabs.h"

namespace ajour {

struct NMSlabs {
  int64_t n, k;
  int keep, group;
  int columns;      // of a slab
  int per_word;     // places in a word
  int row_values;   // of one row of one lane; not for 2:4
  int value_bytes;  // of a slab
  int slab_bytes;   // with the places or metadata

  AJOUR_BOTH bool in_hardware() const { return keep == 2 && group == 4; }
  AJOUR_BOTH static constexpr int position_bits(int group) {
    return group == 4 ? 2 : group == 8 ? 3 : group == 16 ? 4 : 5;
  }
  AJOUR_BOTH int64_t panels() const { return ceil_div(n, kSlabRows); }
  AJOUR_BOTH int slab_entries() const { return columns / group * keep; }   // kept values of a row in a slab
  AJOUR_BOTH int64_t slabs() const { return ceil_div(k, columns); }        // of a panel
  int64_t bytes() const { return (panels() * slabs() + 1) * slab_bytes; }  // a slab of zeros ends them

  // Byte offsets in a slab of what a lane reads. 2:4: 16 bytes each.
  AJOUR_BOTH static int fragment_at(int step, int fragment, int lane) {
    return ((step * kFragments + fragment) * kWarp + lane) * 16;
  }
  AJOUR_BOTH static int metadata_at(int lane) { return 4096 + lane * 16; }
  // The others: 2 bytes, 4 bytes.
  AJOUR_BOTH static int value_at(int value, int lane) { return (value >> 1) * 128 + lane * 4 + (value & 1) * 2; }
  AJOUR_BOTH static int places_at(int value_bytes, int word, int lane) {
    return value_bytes + (word * kWarp + lane) * 4;
  }
  AJOUR_BOTH int places_at(int word, int lane) const { return places_at(value_bytes, word, lane); }
};

// Throws KernelError unless 1 <= keep < group and the group is 4, 8, 16 or 32.
NMSlabs nm_slabs(int64_t n, int64_t k, int keep, int group);

// From the canonical 16-bit values [n, groups * keep] and positions [n, bytes] (layout/nm.h), on torch's threads.
void pack_nm_slabs(const NMSlabs& layout, const void* values, const uint8_t* positions, uint8_t* slabs);

// The inverse.
void unpack_nm_slabs(const NMSlabs& layout, const uint8_t* slabs, void* values, uint8_t* positions);

}  // namespace ajour
