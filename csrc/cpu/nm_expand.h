// The dense weight of N:M panels, for a dense product of many rows.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "layout/nm_panels.h"

namespace ajour::cpu {

struct NMExpand {
  NMPanels layout;
  const void* values;
  const uint8_t* codes;
  void* weight;  // [n, k], contiguous; every element is written
};

AJOUR_PER_ISA(nm_expand, NMExpand)

}  // namespace ajour::cpu
