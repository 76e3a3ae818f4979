// The dense weight of bitmap rows, for a product that is better done dense.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace ajour::cpu {

// dense: [last - first, k] = the rows first to last of a weight in bitmap rows (layout/bitmap_rows.h), bit for bit.
struct BitmapExpand {
  int64_t first, last, k;
  int itemsize;  // 2 or 4
  const void* values;
  const uint64_t* bits;
  const int64_t* starts;
  void* dense;
};

AJOUR_PER_ISA(bitmap_expand, BitmapExpand)

}  // namespace ajour::cpu
