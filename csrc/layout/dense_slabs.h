// Dense slabs: every weight in the order in which a warp multiplies it (layout/slabs.h), for the control that shows
// what packing, stripes and copies bring without zeros.
//
// 64 columns a slab: for each step of 16 columns and each fragment, 16 bytes of every lane, operand A of
// `mma.m16n8k16`: row g columns 2 c and 2 c + 1, row g + 8 the same, then both again 8 columns on. A slab of zeros ends
// them.
#pragma once
#include "layout/slabs.h"

namespace ajour {

struct DenseSlabs {
  static constexpr int kColumns = 64;
  static constexpr int kSteps = 4;  // of 16 columns
  static constexpr int kSlabBytes = kSlabRows * kColumns * 2;

  static int64_t bytes(int64_t n, int64_t k) {
    return (ceil_div(n, kSlabRows) * ceil_div(k, kColumns) + 1) * kSlabBytes;
  }
  AJOUR_BOTH static int fragment_at(int step, int fragment, int lane) {
    return ((step * kFragments + fragment) * kWarp + lane) * 16;
  }
};

}  // namespace ajour
