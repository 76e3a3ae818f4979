// Bitmap slabs: any zeros, as the decode kernels read them, and bit for bit back (layout/slabs.h).
//
// 64 columns a slab:
//   bits    [32 lanes][4 words]: word q is for columns 16 q.., byte f of it for fragment f; its bits stand in the order
//           of the lane's eight elements of operand A of `mma.m16n8k16`, a0 the lowest
//   values  those whose bit is set: by q, then by lane, then by bit; padded to 16 bytes
// A slab of zeros ends them. Slabs differ in size; an index tells where each begins, in units of 16 bytes, and where
// the last one ends.
#pragma once
#include "layout/bitmap.h"
#include "layout/slabs.h"

namespace ajour {

struct BitmapSlabs {
  static constexpr int kColumns = 64;
  static constexpr int kSteps = 4;  // of 16 columns
  static constexpr int kBitBytes = kWarp * kSteps * 4;
  static constexpr int kTiles = 8;  // of 8x8, of a side of a slab
  int64_t n, k;

  // Where in a lane's word its two bits of a tile stand: register row % 2 + col % 2 * 2 of fragment row / 2, in the
  // word of step col / 2. They are bits 2 l and 2 l + 1 of the tile for lane l.
  AJOUR_BOTH static constexpr int bit_of(int row, int col) { return row / 2 * 8 + (row % 2 + col % 2 * 2) * 2; }

  AJOUR_BOTH int64_t panels() const { return ceil_div(n, kSlabRows); }
  AJOUR_BOTH int64_t slabs() const { return ceil_div(k, kColumns); }  // of a panel
  AJOUR_BOTH int64_t count() const { return panels() * slabs(); }
};

// The bytes of a word of lane bits, counted: byte f holds how many bits are set in bytes 0..f.
AJOUR_BOTH uint32_t running_counts(uint32_t word) {
  word -= word >> 1 & 0x55555555u;
  word = (word & 0x33333333u) + (word >> 2 & 0x33333333u);
  word = (word + (word >> 4)) & 0x0f0f0f0fu;
  return word * 0x01010101u;
}

// Fills index [count + 2] from the canonical offsets; returns the bytes of the largest slab. Throws KernelError if the
// index can't count them.
int64_t index_bitmap_slabs(const BitmapSlabs& layout, const int32_t* offsets, int32_t* index);

// From canonical tensors with 16-bit values (layout/bitmap.h), where `index` is index_bitmap_slabs'; on torch's
// threads, as what follows.
void pack_bitmap_slabs(const BitmapSlabs& layout, const BitmapTensors& matrix, const int32_t* index, uint8_t* slabs);

// The inverse, first bitmaps and offsets, which gives the number of values; then these.
int64_t find_bitmap_slabs(const BitmapSlabs& layout, const uint8_t* slabs, const int32_t* index,
                          const BitmapTensors& matrix);
void unpack_bitmap_slabs(const BitmapSlabs& layout, const uint8_t* slabs, const int32_t* index,
                         const BitmapTensors& matrix);

}  // namespace ajour
