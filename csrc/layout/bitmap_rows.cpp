#include "layout/bitmap_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "memory/parallel.h"

namespace ajour {
namespace {

// Tile rows that are worth a thread: 64 Ki elements.
int64_t grain(int64_t k) { return std::max<int64_t>(1, (int64_t(1) << 16) / std::max<int64_t>(1, TILE * k)); }

int rows_of_tile(const BitmapRows& rows, int64_t i) { return int(std::min<int64_t>(TILE, rows.n - i * TILE)); }

// The eight bits of tile column j in a row.
uint8_t& byte_of(const BitmapRows& rows, int64_t row, int64_t j) {
  return reinterpret_cast<uint8_t*>(rows.bits + row * row_words(rows.k))[j];
}

constexpr struct BitCounts {
  constexpr BitCounts() : of() {
    for (int byte = 1; byte < 256; ++byte) of[byte] = uint8_t(of[byte / 2] + byte % 2);
  }
  uint8_t of[256];
} kBits;

// Copies the values of up to eight neighbours: eight words where both sides have them, as what comes later overwrites
// the rest. 4 times as fast as a loop whose end nobody can predict.
template <class Word>
void copy_run(const Word* from, const Word* from_end, Word* to, const Word* to_end, int count) {
  if (from_end - from >= TILE && to_end - to >= TILE) {
    std::memcpy(to, from, TILE * sizeof(Word));
  } else {
    std::copy_n(from, count, to);
  }
}

// Where the values of each tile of tile row i begin.
std::vector<int32_t> tile_starts(const BitmapTensors& t, int64_t tile_cols, int64_t i) {
  std::vector<int32_t> starts(static_cast<size_t>(tile_cols));
  int32_t next = t.offsets[i * ((tile_cols + GROUP_TILES - 1) / GROUP_TILES)];
  for (int64_t j = 0; j < tile_cols; ++j) {
    starts[size_t(j)] = next;
    next += __builtin_popcountll(t.bitmaps[i * tile_cols + j]);
  }
  return starts;
}

void bits_from_tiles(const BitmapTensors& t, const BitmapRows& rows) {
  const int64_t tile_cols = tiles_of(rows.k);
  parallel_for(0, tiles_of(rows.n), grain(rows.k), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      for (int r = 0; r < rows_of_tile(rows, i); ++r) {
        const int64_t row = i * TILE + r;
        uint64_t* words = rows.bits + row * row_words(rows.k);
        std::fill(words, words + row_words(rows.k), 0);
        for (int64_t j = 0; j < tile_cols; ++j) byte_of(rows, row, j) = uint8_t(t.bitmaps[i * tile_cols + j] >> 8 * r);
        rows.starts[row + 1] = 0;
        for (int64_t j = 0; j < row_words(rows.k); ++j) rows.starts[row + 1] += __builtin_popcountll(words[j]);
      }
    }
  });
  rows.starts[0] = 0;
  for (int64_t row = 0; row < rows.n; ++row) rows.starts[row + 1] += rows.starts[row];
}

void tiles_from_bits(const BitmapRows& rows, const BitmapTensors& t) {
  const int64_t tile_cols = tiles_of(rows.k), groups = tile_groups_of(rows.k);
  parallel_for(0, tiles_of(rows.n), grain(rows.k), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      std::fill(t.offsets + i * groups + 1, t.offsets + (i + 1) * groups + 1, 0);
      for (int64_t j = 0; j < tile_cols; ++j) {
        uint64_t bits = 0;
        for (int r = 0; r < rows_of_tile(rows, i); ++r) bits |= uint64_t(byte_of(rows, i * TILE + r, j)) << 8 * r;
        t.bitmaps[i * tile_cols + j] = bits;
        t.offsets[i * groups + j / GROUP_TILES + 1] += __builtin_popcountll(bits);
      }
    }
  });
  t.offsets[0] = 0;
  for (int64_t group = 0; group < tiles_of(rows.n) * groups; ++group) t.offsets[group + 1] += t.offsets[group];
}

}  // namespace

void pack_bitmap_rows(const BitmapTensors& t, const BitmapRows& rows) {
  bits_from_tiles(t, rows);
  const int64_t tile_cols = tiles_of(rows.k);
  by_word(rows.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    const Word *tiles = static_cast<const Word*>(t.values), *tiles_end = tiles + t.nonzeros;
    Word* values = static_cast<Word*>(rows.values);
    parallel_for(0, tiles_of(rows.n), grain(rows.k), [&](int64_t first, int64_t last) {
      const Word* end = values + rows.starts[std::min(last * TILE, rows.n)];  // what follows is another thread's
      for (int64_t i = first; i < last; ++i) {
        std::vector<int32_t> next = tile_starts(t, tile_cols, i);
        for (int r = 0; r < rows_of_tile(rows, i); ++r) {
          const int64_t row = i * TILE + r;
          Word* to = values + rows.starts[row];
          for (int64_t j = 0; j < tile_cols; ++j) {
            const int count = kBits.of[byte_of(rows, row, j)];
            copy_run(tiles + next[size_t(j)], tiles_end, to, end, count);
            next[size_t(j)] += count;
            to += count;
          }
        }
      }
    });
    std::fill_n(values + rows.starts[rows.n], kValueTail, Word(0));
  });
}

void unpack_bitmap_rows(const BitmapRows& rows, const BitmapTensors& t) {
  tiles_from_bits(rows, t);
  const int64_t tile_cols = tiles_of(rows.k), groups = tile_groups_of(rows.k);
  by_word(rows.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    const Word *values = static_cast<const Word*>(rows.values), *values_end = values + rows.starts[rows.n] + kValueTail;
    Word* tiles = static_cast<Word*>(t.values);
    parallel_for(0, tiles_of(rows.n), grain(rows.k), [&](int64_t first, int64_t last) {
      const Word* end = tiles + t.offsets[last * groups];  // what follows is another thread's
      for (int64_t i = first; i < last; ++i) {
        Word* to = tiles + t.offsets[i * groups];
        const Word* from[TILE];
        for (int r = 0; r < rows_of_tile(rows, i); ++r) from[r] = values + rows.starts[i * TILE + r];
        for (int64_t j = 0; j < tile_cols; ++j) {
          for (int r = 0; r < rows_of_tile(rows, i); ++r) {
            const int count = kBits.of[byte_of(rows, i * TILE + r, j)];
            copy_run(from[r], values_end, to, end, count);
            from[r] += count;
            to += count;
          }
        }
      }
    });
  });
}

}  // namespace ajour
