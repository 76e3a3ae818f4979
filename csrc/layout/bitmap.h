// The canonical bitmap form: a 64-bit word for each tile of 8x8, and the non-zeros tile by tile in the order of its
// bits.
#pragma once
#include <cstdint>

#include "memory/both.h"
#include "memory/views.h"

namespace ajour {

constexpr int TILE = 8;         // rows and columns of a tile; element (r, c) is bit 8 * r + c
constexpr int GROUP_TILES = 8;  // neighbouring tiles of a tile row that share an offset

AJOUR_BOTH constexpr int64_t tiles_of(int64_t size) { return (size + TILE - 1) / TILE; }
AJOUR_BOTH constexpr int64_t tile_groups_of(int64_t k) { return (tiles_of(k) + GROUP_TILES - 1) / GROUP_TILES; }

struct BitmapTensors {
  void* values;       // [nonzeros] words
  uint64_t* bitmaps;  // [tile_rows, tile_cols]
  int32_t* offsets;   // [tile_rows * tile_groups + 1]
  int64_t nonzeros;
};

// From how many values each group has, in offsets[1..], to where it begins; returns their sum. Throws PatternError if
// an offset can't count them.
int64_t sum_offsets(int32_t* offsets, int64_t groups);

// Fills bitmaps and offsets from `w`; returns the non-zeros. Throws PatternError if an offset can't count them.
int64_t find_nonzeros(const WeightView& w, uint64_t* bitmaps, int32_t* offsets);

// Fills the values, where bitmaps and offsets are find_nonzeros'.
void pack_bitmap(const WeightView& w, const BitmapTensors& tensors);

// Writes all of `w`. Throws FormatError before it would touch anything else.
void unpack_bitmap(const BitmapTensors& tensors, const WeightView& w);

// `w` gives the size only. Throws FormatError with the first place that is wrong.
void check_bitmap(const BitmapTensors& tensors, const WeightView& w);

}  // namespace ajour
