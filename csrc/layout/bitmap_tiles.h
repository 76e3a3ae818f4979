// A bitmap weight in its canonical form (layout/bitmap.h), read tile by tile and row by row by whoever packs it: a
// thread of the host or of a device.
#pragma once
#include "layout/bitmap.h"
#include "layout/zeros.h"

namespace ajour {

struct BitmapTiles {
  BitmapTensors tensors;
  int64_t n, k;

  AJOUR_BOTH int64_t rows() const { return tiles_of(n); }
  AJOUR_BOTH int64_t cols() const { return tiles_of(k); }

  // The bits of a tile; none beyond the weight.
  AJOUR_BOTH uint64_t at(int64_t row, int64_t col) const {
    return row < rows() && col < cols() ? tensors.bitmaps[row * cols() + col] : 0;
  }

  // Where the values of a tile of the weight begin.
  AJOUR_BOTH int64_t begin(int64_t row, int64_t col) const {
    int64_t index = tensors.offsets[row * tile_groups_of(k) + col / GROUP_TILES];
    for (int64_t before = col - col % GROUP_TILES; before < col; ++before) index += count_bits(at(row, before));
    return index;
  }

  // Calls visit(column, index of the value) for each kept place of a row between two columns that tiles begin at.
  template <class Visit>
  AJOUR_BOTH void each_of_row(int64_t row, int64_t first, int64_t end, Visit&& visit) const {
    const int shift = int(row % TILE) * TILE;
    int64_t index = 0;
    for (int64_t col = first / TILE; col * TILE < end; ++col) {
      if (col * TILE == first || col % GROUP_TILES == 0) index = begin(row / TILE, col);
      const uint64_t tile = at(row / TILE, col);
      int64_t value = index + count_bits(tile & ((uint64_t(1) << shift) - 1));
      for (int c = 0; c < TILE; ++c) {
        if (tile >> (shift + c) & 1) visit(col * TILE + c, value++);
      }
      index += count_bits(tile);
    }
  }
};

// What follows is the work of a device's threads, thing i of count() each, so that the host can do it too. bitmap.cpp
// finds and packs tiles row by row, which suits a CPU; a test holds the two together.

// The bits of a tile of a dense weight.
template <class Word>
struct FindTiles {
  WeightView w;
  BitmapTiles to;

  AJOUR_BOTH int64_t count() const { return to.rows() * to.cols(); }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int64_t row = i / to.cols() * TILE, col = i % to.cols() * TILE;
    uint64_t bits = 0;
    for (int r = 0; r < TILE && row + r < w.n; ++r) {
      for (int c = 0; c < TILE && col + c < w.k; ++c) {
        bits |= uint64_t(!is_zero(w.row<Word>(row + r)[col + c])) << (r * TILE + c);
      }
    }
    to.tensors.bitmaps[i] = bits;
  }
};

// How many values a group of tiles has; sum_offsets makes of them where each begins.
struct CountGroups {
  BitmapTiles of;

  AJOUR_BOTH int64_t count() const { return of.rows() * tile_groups_of(of.k); }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int64_t groups = tile_groups_of(of.k);
    int32_t values = 0;
    for (int t = 0; t < GROUP_TILES; ++t) values += count_bits(of.at(i / groups, i % groups * GROUP_TILES + t));
    of.tensors.offsets[i + 1] = values;
  }
};

// The values of a tile whose bits are known.
template <class Word>
struct PackTiles {
  WeightView w;
  BitmapTiles to;

  AJOUR_BOTH int64_t count() const { return to.rows() * to.cols(); }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int64_t row = i / to.cols(), col = i % to.cols();
    const uint64_t bits = to.at(row, col);
    Word* value = static_cast<Word*>(to.tensors.values) + to.begin(row, col);
    for (int bit = 0; bit < TILE * TILE; ++bit) {
      if (bits >> bit & 1) *value++ = w.row<Word>(row * TILE + bit / TILE)[col * TILE + bit % TILE];
    }
  }
};

// The way back: a tile of the dense weight.
template <class Word>
struct UnpackTiles {
  BitmapTiles from;
  WeightView w;

  AJOUR_BOTH int64_t count() const { return from.rows() * from.cols(); }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int64_t row = i / from.cols(), col = i % from.cols();
    const uint64_t bits = from.at(row, col);
    const Word* value = static_cast<const Word*>(from.tensors.values) + from.begin(row, col);
    for (int r = 0; r < TILE && row * TILE + r < w.n; ++r) {
      for (int c = 0; c < TILE && col * TILE + c < w.k; ++c) {
        const bool kept = bits >> (r * TILE + c) & 1;
        w.row<Word>(row * TILE + r)[col * TILE + c] = kept ? plus_zero(*value++) : Word(0);
      }
    }
  }
};

}  // namespace ajour
