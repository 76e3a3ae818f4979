// Bitmap slabs as the work of a device's threads, thing i of count() each, so that the host can do it too: a word of
// bits with its values, or a canonical tile. bitmap_slabs.cpp goes slab by slab, which suits a CPU; a test holds the
// two together.
#pragma once
#include "layout/bitmap_slabs.h"
#include "layout/bitmap_tiles.h"

namespace ajour {

// Word (lane, step) of a slab, of which `values` precede those of this word.
struct BitmapSlabWord {
  uint32_t bits;
  int values;
};

// Calls visit(place in the slab, index in the canonical form) for each value of the word.
template <class Visit>
AJOUR_BOTH BitmapSlabWord bitmap_slab_word(const BitmapTiles& from, int64_t panel, int64_t slab, int step, int lane,
                                           Visit&& visit) {
  constexpr int kTiles = BitmapSlabs::kTiles;
  const uint64_t below = (uint64_t(1) << 2 * lane) - 1;  // the bits of a tile that earlier lanes hold
  BitmapSlabWord word{0, 0};
  int64_t next[kTiles][2];
  AJOUR_UNROLL_BOTH
  for (int row = 0; row < kTiles; ++row) {
    const int64_t tile_row = panel * kTiles + row;
    int64_t index = tile_row < from.rows() ? from.begin(tile_row, slab * kTiles) : 0;
    AJOUR_UNROLL_BOTH
    for (int col = 0; col < kTiles; ++col) {
      const uint64_t tile = from.at(tile_row, slab * kTiles + col);
      const int count = count_bits(tile), before = count_bits(tile & below);
      if (col / 2 < step) word.values += count;
      if (col / 2 == step) {
        word.values += before;
        word.bits |= uint32_t(tile >> 2 * lane & 3) << BitmapSlabs::bit_of(row, col);
        next[row][col % 2] = index + before;
      }
      index += count;
    }
  }
  int place = word.values;
  AJOUR_UNROLL_BOTH
  for (int bit = 0; bit < 32; ++bit) {
    const int row = bit / 8 * 2 + bit / 2 % 2, half = bit / 4 % 2;
    if (word.bits >> bit & 1) visit(place++, next[row][half]++);
  }
  return word;
}

// Tile (row, col) of a slab.
AJOUR_BOTH uint64_t bitmap_slab_tile(const uint32_t* words, int row, int col) {
  uint64_t tile = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    const uint32_t word = words[lane * BitmapSlabs::kSteps + col / 2];
    tile |= uint64_t(word >> BitmapSlabs::bit_of(row, col) & 3) << 2 * lane;
  }
  return tile;
}

// A word, its values, and the zeros that fill the slab up; the slab of zeros after the last one too.
struct PackBitmapSlabs {
  BitmapSlabs layout;
  BitmapTiles from;
  const int32_t* index;
  uint8_t* slabs;

  static constexpr int kWords = BitmapSlabs::kSteps * kWarp;  // of a slab
  AJOUR_BOTH int64_t count() const { return (layout.count() + 1) * kWords; }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int64_t slab = i / kWords;
    const int step = int(i / kWarp % BitmapSlabs::kSteps), lane = int(i % kWarp);
    uint8_t* to = slabs + int64_t(index[slab]) * kSlabAlign;
    uint32_t* word = reinterpret_cast<uint32_t*>(to) + lane * BitmapSlabs::kSteps + step;
    *word = 0;
    if (slab == layout.count()) return;
    uint16_t* values = reinterpret_cast<uint16_t*>(to + BitmapSlabs::kBitBytes);
    const auto* canonical = static_cast<const uint16_t*>(from.tensors.values);
    const auto found = bitmap_slab_word(from, slab / layout.slabs(), slab % layout.slabs(), step, lane,
                                        [&](int place, int64_t value) { values[place] = canonical[value]; });
    *word = found.bits;
    if (i % kWords != kWords - 1) return;
    const int room = ((index[slab + 1] - index[slab]) * kSlabAlign - BitmapSlabs::kBitBytes) / 2;
    for (int place = found.values + count_bits(found.bits); place < room; ++place) values[place] = 0;
  }
};

// A canonical tile's bits.
struct FindBitmapSlabs {
  BitmapSlabs layout;
  const uint8_t* slabs;
  const int32_t* index;
  BitmapTiles to;

  AJOUR_BOTH int64_t count() const { return to.rows() * to.cols(); }
  AJOUR_BOTH void operator()(int64_t i) const {
    constexpr int kTiles = BitmapSlabs::kTiles;
    const int64_t row = i / to.cols(), col = i % to.cols();
    const int64_t slab = row / kTiles * layout.slabs() + col / kTiles;
    const auto* words = reinterpret_cast<const uint32_t*>(slabs + int64_t(index[slab]) * kSlabAlign);
    to.tensors.bitmaps[i] = bitmap_slab_tile(words, int(row % kTiles), int(col % kTiles));
  }
};

// The values of a word, where bits and offsets are known.
struct UnpackBitmapSlabs {
  BitmapSlabs layout;
  const uint8_t* slabs;
  const int32_t* index;
  BitmapTiles to;

  AJOUR_BOTH int64_t count() const { return layout.count() * PackBitmapSlabs::kWords; }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int64_t slab = i / PackBitmapSlabs::kWords;
    const uint8_t* from = slabs + int64_t(index[slab]) * kSlabAlign;
    const auto* values = reinterpret_cast<const uint16_t*>(from + BitmapSlabs::kBitBytes);
    auto* canonical = static_cast<uint16_t*>(to.tensors.values);
    bitmap_slab_word(to, slab / layout.slabs(), slab % layout.slabs(), int(i / kWarp % BitmapSlabs::kSteps),
                     int(i % kWarp), [&](int place, int64_t value) { canonical[value] = values[place]; });
  }
};

}  // namespace ajour
