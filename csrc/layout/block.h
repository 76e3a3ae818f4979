// The canonical block form: live blocks in row-major order, BCSR, COO rows, and the order by columns for products with
// W^T.
#pragma once
#include <cstdint>

#include "memory/views.h"

namespace ajour {

struct BlockLayout {
  int rows, cols;

  constexpr int64_t block_rows(int64_t n) const { return (n + rows - 1) / rows; }
  constexpr int64_t block_cols(int64_t k) const { return (k + cols - 1) / cols; }
};

// The canonical tensors of one matrix.
struct BlockTensors {
  void* blocks;             // [live, rows, cols] words; zeros beyond the weight
  int32_t* row_offsets;     // [block_rows + 1]
  int32_t* columns;         // [live]
  int32_t* rows;            // [live]
  int32_t* column_offsets;  // [block_cols + 1]
  int32_t* order;           // [live] blocks sorted by column, then by row
  int64_t live;
};

// Fills grid: [block_rows, block_cols] with 1 for each block of `w` that holds a non-zero, and returns how many do.
int64_t find_blocks(const BlockLayout& layout, const WeightView& w, uint8_t* grid);

// Fills every tensor from `w` and the grid that find_blocks made of it.
void pack_blocks(const BlockLayout& layout, const WeightView& w, const uint8_t* grid, const BlockTensors& tensors);

// Writes all of `w`. Throws FormatError before it would touch anything else.
void unpack_blocks(const BlockLayout& layout, const BlockTensors& tensors, const WeightView& w);

// `w` gives the size only. Throws FormatError with the first place that is wrong.
void check_blocks(const BlockLayout& layout, const BlockTensors& tensors, const WeightView& w);

}  // namespace ajour
