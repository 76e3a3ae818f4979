// N:M panels: a weight in an N:M pattern as the CPU kernels read it, and bit for bit back.
//
// 16 rows of the weight make a panel. Its columns are cut into windows of whole groups, at most 16 columns (32 for
// groups of more than 16), so that a window of x fits a register and a code chooses a column of it by an in-register
// permute. Every window has the same number of slots; a slot holds one kept value of each of the 16 rows and their
// codes.
//   values  [panels][windows][slots][16]; paired, as vdpbf16ps reads bfloat16: [panels][windows][slots / 2][16][2]
//   codes   [panels][windows][slots][16 codes of `bits` bits]; paired: [panels][windows][slots / 2][32 codes]
// A code counts columns from the slot's `base`: 2 bits reach the four columns of a 2:4 group, 4 or 8 bits the window.
// Lane i of a slot stands in word i % words at bit bits * (i / words), so that a broadcast and one shift for each lane
// decode it; words have 32 bits (16 where paired, for 32 lanes).
// What overhangs n or k is +0.0 with the code of a column beyond k, where the kernels' copy of x is zero.
#pragma once
#include <cstdint>

namespace ajour {

constexpr int kPanelRows = 16;

struct NMPanels {
  int64_t n, k;
  int keep, group;
  int value_bytes;          // 4 or 2
  bool paired;              // two slots interleaved
  int bits;                 // of a code: 2, 4 or 8
  int window, slots;        // columns, and kept values of a row, in a window
  int64_t panels, windows;  // windows of a row; an even number where paired
  int64_t values, code_bytes;
  int32_t base[32];  // of each slot of a window
};

// The layout of a weight [n, k]; bfloat16 is paired where groups divide 16 and a window has an even number of slots.
// Throws KernelError unless 1 <= keep < group <= 32 and value_bytes is 2 or 4.
NMPanels nm_panels(int64_t n, int64_t k, int keep, int group, int value_bytes, bool bfloat16);

// From the canonical values [n, groups * keep] and positions [n, bytes] (formats/nm.py), on torch's threads.
void pack_nm_panels(const NMPanels& layout, const void* values, const uint8_t* positions, void* panel_values,
                    uint8_t* panel_codes);

// The inverse.
void unpack_nm_panels(const NMPanels& layout, const void* panel_values, const uint8_t* panel_codes, void* values,
                      uint8_t* positions);

}  // namespace ajour
