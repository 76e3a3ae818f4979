// The positions of a 2:4 weight [n, k] as `wgmma.sp` takes them on sm_90a; the values stay as the canonical form has
// them.
//
// A tile is 64 rows by 128 columns, 1024 bytes; tiles stand one below the other, then one column of them after the
// other: CUTLASS's order, which its tensor maps describe. A cell is 2 bytes, the codes of 16 columns of a row, as in
// the canonical form. Warp w of a warpgroup holds rows 16 w.. of a tile (PTX ISA 9.7.15.6, "sparse wgmma"): for 32
// columns, lane 4 r + h (h = 0, 1) gives one word, its low half columns 16 h.. of row r, its high half those of row
// r + 8. The words of a tile's four times 32 columns stand side by side, so a lane reads them as 16 bytes, at
// 256 w + 128 h + 16 r. Rows beyond n and columns beyond k hold the code of positions 0 and 1, for values that are
// +0.0.
//
// That is for 16-bit values. Those of e4m3 have their canonical codes, in columns of 128: [k / 128][rows][16 bytes],
// rows padded as here, k to the 256 columns of a tile.
#pragma once
#include <cstdint>

#include "layout/slabs.h"

namespace ajour {

struct Sm90Metadata {
  static constexpr int kRows = 64, kColumns = 128, kTileBytes = kRows * kColumns / 8;
  static constexpr int kCell = 16;       // columns of a cell
  static constexpr int kUnitBytes = 32;  // what one thread packs: two rows of a tile
  // Clusters that cover n rows read none beyond a multiple of these. Blocks that CUTLASS adds to fill a swizzle stand
  // beyond it: TMA gives them zeros there, and what they compute is thrown away.
  static constexpr int kClusterRows = 512;
  static constexpr int kScaledColumns = 256;  // that e4m3 is padded to
  static constexpr uint16_t kFirstTwo = 0x4444;
  int64_t n, k;  // k is a multiple of 16: cells are whole

  AJOUR_BOTH static int64_t padded(int64_t n) { return ceil_div(n, kClusterRows) * kClusterRows; }
  AJOUR_BOTH int64_t bytes() const { return padded(n) * ceil_div(k, kColumns) * (kColumns / 8); }
  AJOUR_BOTH int64_t units() const { return bytes() / kUnitBytes; }
};

// What one lane reads for 128 columns: four words of two cells.
struct alignas(16) Sm90Cells {
  uint16_t cell[8];
};

// A unit: rows `row` and `row + 8`, eight cells from `cell` on; what lanes h = 0 and 1 read of them stands at `place`
// and 128 bytes behind it.
struct Sm90Unit {
  int64_t row, cell, place;

  AJOUR_BOTH Sm90Unit(const Sm90Metadata& layout, int64_t unit) {
    const int64_t tile = unit / 32, tiles = Sm90Metadata::padded(layout.n) / Sm90Metadata::kRows;
    const int warp = int(unit % 32) / 8, r = int(unit % 8);
    row = tile % tiles * Sm90Metadata::kRows + warp * 16 + r;
    cell = tile / tiles * (Sm90Metadata::kColumns / Sm90Metadata::kCell);
    place = tile * Sm90Metadata::kTileBytes + warp * 256 + r * 16;
  }
  // Where cell i of what lane h reads comes from.
  AJOUR_BOTH int64_t row_of(int i) const { return row + i % 2 * 8; }
  AJOUR_BOTH int64_t cell_of(int i, int h) const { return cell + i / 2 * 2 + h; }
};

// positions: [n, k / 8], canonical. One unit of metadata from it, and back; shared by the CPU and the GPU.
AJOUR_BOTH void pack_sm90_unit(const Sm90Metadata& layout, int64_t number, const uint8_t* positions,
                               uint8_t* metadata) {
  const Sm90Unit unit(layout, number);
  for (int h = 0; h < 2; ++h) {
    Sm90Cells cells;
    for (int i = 0; i < 8; ++i) {
      const int64_t row = unit.row_of(i), cell = unit.cell_of(i, h);
      const uint8_t* from = positions + row * (layout.k / 8) + cell * 2;
      const bool inside = row < layout.n && cell < layout.k / Sm90Metadata::kCell;
      cells.cell[i] = inside ? uint16_t(from[0] | from[1] << 8) : Sm90Metadata::kFirstTwo;
    }
    *reinterpret_cast<Sm90Cells*>(metadata + unit.place + h * 128) = cells;
  }
}

AJOUR_BOTH void unpack_sm90_unit(const Sm90Metadata& layout, int64_t number, const uint8_t* metadata,
                                 uint8_t* positions) {
  const Sm90Unit unit(layout, number);
  for (int h = 0; h < 2; ++h) {
    const Sm90Cells cells = *reinterpret_cast<const Sm90Cells*>(metadata + unit.place + h * 128);
    for (int i = 0; i < 8; ++i) {
      const int64_t row = unit.row_of(i), cell = unit.cell_of(i, h);
      if (row >= layout.n || cell >= layout.k / Sm90Metadata::kCell) continue;
      uint8_t* to = positions + row * (layout.k / 8) + cell * 2;
      to[0] = uint8_t(cells.cell[i]);
      to[1] = uint8_t(cells.cell[i] >> 8);
    }
  }
}

// All units, on torch's threads.
void pack_sm90_metadata(const Sm90Metadata& layout, const uint8_t* positions, uint8_t* metadata);
void unpack_sm90_metadata(const Sm90Metadata& layout, const uint8_t* metadata, uint8_t* positions);

}  // namespace ajour
