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
  int64_t n, k;

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
int64_t index_bitmap_slabs(const BitmapSlabs& layout, const BitmapTensors& matrix, int32_t* index);

// From and to canonical tensors with 16-bit values (layout/bitmap.h), where `index` is index_bitmap_slabs'; on torch's
// threads. Unpacking fills bitmaps, offsets and values.
void pack_bitmap_slabs(const BitmapSlabs& layout, const BitmapTensors& matrix, const int32_t* index, uint8_t* slabs);
void unpack_bitmap_slabs(const BitmapSlabs& layout, const uint8_t* slabs, const int32_t* index,
                         const BitmapTensors& matrix);

// How many bits of all slabs are set.
int64_t count_bitmap_slabs(const BitmapSlabs& layout, const uint8_t* slabs, const int32_t* index);

}  // namespace ajour
