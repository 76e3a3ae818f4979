// Bitmap rows: an unstructured weight row after row, as the CPU's decode kernel reads it, and bit for bit back.
//
// Row i of the weight [n, k] is `words` words of 64 bits, bit c of word j set where column 64 j + c is kept, and its
// kept values in the order of their columns, from values[starts[i]] on. Behind the last value stand kValueTail more,
// zeros, so that a kernel may load whole vectors anywhere.
#pragma once
#include <cstdint>

#include "layout/bitmap.h"

namespace ajour {

constexpr int64_t kValueTail = 64;

constexpr int64_t row_words(int64_t k) { return (k + 63) / 64; }

struct BitmapRows {
  void* values;     // [nonzeros + kValueTail] words of `itemsize` bytes
  uint64_t* bits;   // [n, row_words(k)]
  int64_t* starts;  // [n + 1]
  int64_t n, k;
  int itemsize;  // 2, 4 or 8
};

// From the canonical form; fills all of `rows`, whose values must have room for t.nonzeros + kValueTail.
void pack_bitmap_rows(const BitmapTensors& t, const BitmapRows& rows);

// The inverse: fills bitmaps, offsets and values of `t`.
void unpack_bitmap_rows(const BitmapRows& rows, const BitmapTensors& t);

}  // namespace ajour
