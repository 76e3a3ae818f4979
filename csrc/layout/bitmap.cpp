#include "layout/bitmap.h"

#include <algorithm>
#include <vector>

#include "layout/zeros.h"
#include "memory/parallel.h"

namespace ajour {
namespace {

// Tile rows that are worth a thread: 64 Ki elements.
int64_t grain(int64_t k) { return std::max<int64_t>(1, (int64_t(1) << 16) / std::max<int64_t>(1, TILE * k)); }

// The bits of tile (i, j) that lie inside the weight.
uint64_t inside(const WeightView& w, int64_t i, int64_t j) {
  const int rows = int(std::min<int64_t>(TILE, w.n - i * TILE)), cols = int(std::min<int64_t>(TILE, w.k - j * TILE));
  const uint64_t row = (uint64_t(1) << cols) - 1;
  return row * 0x0101010101010101u & ~uint64_t(0) >> 8 * (TILE - rows);
}

// Calls visit(row of the weight, column, index of the value) for each bit of tile row i; returns the index after.
template <class Visit>
int64_t each_value(const uint64_t* bitmaps, int64_t tile_cols, int64_t i, int64_t index, const Visit& visit) {
  for (int64_t j = 0; j < tile_cols; ++j) {
    for (uint64_t bits = bitmaps[i * tile_cols + j]; bits; bits &= bits - 1) {
      const int bit = __builtin_ctzll(bits);
      visit(i * TILE + bit / TILE, j * TILE + bit % TILE, index++);
    }
  }
  return index;
}

}  // namespace

int64_t sum_offsets(int32_t* offsets, int64_t groups) {
  offsets[0] = 0;
  int64_t total = 0;
  for (int64_t group = 1; group <= groups; ++group) {
    total += offsets[group];
    offsets[group] = int32_t(total);
  }
  if (total > INT32_MAX) refuse<PatternError>("a BitmapMatrix has at most ", INT32_MAX, " non-zeros, found ", total);
  return total;
}

int64_t find_nonzeros(const WeightView& w, uint64_t* bitmaps, int32_t* offsets) {
  const int64_t tile_rows = tiles_of(w.n), tile_cols = tiles_of(w.k), groups = tile_groups_of(w.k);
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    parallel_for(0, tile_rows, grain(w.k), [&](int64_t first, int64_t last) {
      std::vector<uint64_t> mask(mask_words(w.k));
      for (int64_t i = first; i < last; ++i) {
        uint64_t* tiles = bitmaps + i * tile_cols;
        std::fill(tiles, tiles + tile_cols, 0);
        for (int r = 0; r < TILE && i * TILE + r < w.n; ++r) {
          mask_row(w.row<Word>(i * TILE + r), w.k, mask.data());
          for (int64_t j = 0; j < tile_cols; ++j) tiles[j] |= (mask[j / 8] >> j % 8 * 8 & 0xff) << 8 * r;
        }
        for (int64_t group = 0; group < groups; ++group) {
          int32_t count = 0;
          for (int64_t j = group * GROUP_TILES; j < std::min(tile_cols, (group + 1) * GROUP_TILES); ++j) {
            count += count_bits(tiles[j]);
          }
          offsets[i * groups + group + 1] = count;
        }
      }
    });
  });
  return sum_offsets(offsets, tile_rows * groups);
}

void pack_bitmap(const WeightView& w, const BitmapTensors& t) {
  const int64_t tile_cols = tiles_of(w.k), groups = tile_groups_of(w.k);
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    Word* values = static_cast<Word*>(t.values);
    parallel_for(0, tiles_of(w.n), grain(w.k), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        each_value(t.bitmaps, tile_cols, i, t.offsets[i * groups],
                   [&](int64_t row, int64_t j, int64_t index) { values[index] = w.row<Word>(row)[j]; });
      }
    });
  });
}

void unpack_bitmap(const BitmapTensors& t, const WeightView& w) {
  check_bitmap(t, w);
  const int64_t tile_cols = tiles_of(w.k), groups = tile_groups_of(w.k);
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    const Word* values = static_cast<const Word*>(t.values);
    parallel_for(0, tiles_of(w.n), grain(w.k), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        std::fill(w.row<Word>(i * TILE), w.row<Word>(std::min(w.n, (i + 1) * TILE)), Word(0));
        each_value(t.bitmaps, tile_cols, i, t.offsets[i * groups],
                   [&](int64_t row, int64_t j, int64_t index) { w.row<Word>(row)[j] = plus_zero(values[index]); });
      }
    });
  });
}

void check_bitmap(const BitmapTensors& t, const WeightView& w) {
  const int64_t tile_rows = tiles_of(w.n), tile_cols = tiles_of(w.k), groups = tile_groups_of(w.k);
  int64_t total = 0;
  for (int64_t i = 0; i < tile_rows; ++i) {
    for (int64_t j = 0; j < tile_cols; ++j) {
      const uint64_t bits = t.bitmaps[i * tile_cols + j];
      if (bits & ~inside(w, i, j)) {
        refuse<FormatError>("bitmaps: tile row ", i, ", column ", j, " has a bit set outside the ", w.n, "x", w.k,
                            " weight");
      }
      const int64_t group = i * groups + j / GROUP_TILES;
      if (j % GROUP_TILES == 0 && t.offsets[group] != total) {
        refuse<FormatError>("offsets: entry ", group, " is ", t.offsets[group], ", but ", total, " bits precede it");
      }
      total += count_bits(bits);
    }
  }
  if (t.offsets[tile_rows * groups] != total) {
    refuse<FormatError>("offsets: the last entry is ", t.offsets[tile_rows * groups], ", but ", total, " bits are set");
  }
  if (t.nonzeros != total)
    refuse<FormatError>("values: expected ", total, " for the bits that are set, found ", t.nonzeros);
}

}  // namespace ajour
