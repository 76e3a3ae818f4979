// Block panels: a block-sparse weight as the CPU kernels read it, and bit for bit back.
//
// A block row's rows are cut into panels of `panel_rows` (1, 2, 4, 8, 16 or 32), the last one padded with zero rows
// that no kernel stores. All panels of a block row share its list of live columns:
//   values  [block rows][panels][live columns][panel_rows]; 16-bit values in pairs of columns, as vdpbf16ps reads them:
//           [block rows][panels][live columns / 2][panel_rows][2]
//   index   int32: n, k, rows, cols, live blocks | block offsets [block_rows + 1] | columns where each unit starts
// A unit is a whole block's columns, or one column where pairs are needed and a block has an odd number of them: then a
// pair joins columns of anywhere, and a row of odd length ends in a column of zeros that belongs to column k of x,
// where the kernels' copy of x is zero too. Columns of a last block that overhangs k are zeros, and belong to column k
// as well or follow it.
#pragma once
#include <cstdint>

#include "layout/block.h"

namespace ajour {

// The kernels are compiled once per instruction set: what they share must never be emitted out of line.
#define AJOUR_SHARED inline __attribute__((always_inline))

struct BlockPanels {
  int64_t n, k, live;
  int rows, cols;          // of a block
  int panel_rows;          // rows that a panel stores
  int panels;              // of a block row
  int unit;                // columns that follow one another in x
  bool paired, loose;      // 16-bit values in pairs; of columns from anywhere
  const int32_t* offsets;  // [block_rows + 1] blocks before each block row
  const int32_t* starts;   // [live * cols / unit]

  AJOUR_SHARED int64_t block_rows() const { return (n + rows - 1) / rows; }
  AJOUR_SHARED int64_t all_panels() const { return block_rows() * panels; }

  // Live columns of a block row, as stored, and those before it.
  AJOUR_SHARED int64_t columns(int64_t block_row) const {
    const int64_t count = int64_t(offsets[block_row + 1] - offsets[block_row]) * cols;
    return loose ? (count + 1) / 2 * 2 : count;
  }
  AJOUR_SHARED int64_t columns_before(int64_t block_row) const {
    const int64_t count = int64_t(offsets[block_row]) * cols;
    return loose ? (count + block_row + 1) / 2 * 2 : count;  // room for one more column in each row
  }
  AJOUR_SHARED int64_t values() const { return columns_before(block_rows()) * panels * panel_rows; }  // stored

  // Where a panel's values begin.
  AJOUR_SHARED int64_t values_before(int64_t block_row, int panel) const {
    return (columns_before(block_row) * panels + panel * columns(block_row)) * panel_rows;
  }
  AJOUR_SHARED int64_t values_before(int64_t panel) const {  // by its number among all; beyond the last, where they end
    return panel < all_panels() ? values_before(panel / panels, int(panel % panels)) : values();
  }
};

constexpr int kBlockPanelsHeader = 5;

// The layout of n x k in blocks, without an index.
BlockPanels block_panels(const BlockLayout& block, int64_t n, int64_t k, int64_t live, int itemsize);

// Values to store, wherever the blocks lie, and int32 entries of the index.
int64_t block_panels_values(const BlockLayout& block, int64_t n, int64_t live, int itemsize);
int64_t block_panels_index_size(const BlockPanels& layout);

// The layout that an index belongs to.
BlockPanels read_block_panels(const int32_t* index, int itemsize);

// From the canonical blocks, row_offsets and columns (layout/block.h), on torch's threads.
void pack_block_panels(const BlockPanels& layout, const BlockTensors& tensors, int itemsize, void* values,
                       int32_t* index);

// The inverse: writes blocks, row_offsets and columns.
void unpack_block_panels(const BlockPanels& layout, const void* values, int itemsize, const BlockTensors& tensors);

}  // namespace ajour
