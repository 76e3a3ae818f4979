#include "layout/block.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "layout/zeros.h"
#include "memory/parallel.h"

namespace ajour {
namespace {

// Block rows that are worth a thread: 64 Ki elements.
int64_t grain(const BlockLayout& layout, int64_t k) {
  return std::max<int64_t>(1, (int64_t(1) << 16) / std::max<int64_t>(1, layout.rows * k));
}

bool has_bits(const uint64_t* mask, int64_t begin, int count) {
  for (; count > 64; begin += 64, count -= 64) {
    if (bits_at(mask, begin, 64)) return true;
  }
  return bits_at(mask, begin, count) != 0;
}

// The part of a block that lies inside the weight.
struct Place {
  int64_t row, column;  // of its first element
  int rows, cols;

  Place(const BlockLayout& layout, const WeightView& w, int64_t block_row, int64_t block_col)
      : row(block_row * layout.rows),
        column(block_col * layout.cols),
        rows(int(std::min<int64_t>(layout.rows, w.n - row))),
        cols(int(std::min<int64_t>(layout.cols, w.k - column))) {}
};

template <class Word>
void copy_in(const BlockLayout& layout, const WeightView& w, const Place& place, Word* block) {
  for (int i = 0; i < layout.rows; ++i, block += layout.cols) {
    const int cols = i < place.rows ? place.cols : 0;
    if (cols) {
      const Word* row = w.row<Word>(place.row + i) + place.column;
      for (int j = 0; j < cols; ++j) block[j] = plus_zero(row[j]);
    }
    std::fill(block + cols, block + layout.cols, Word(0));
  }
}

// Writes row `row` of the weight from the blocks [first, last) that cross it.
template <class Word>
void write_row(const BlockLayout& layout, const WeightView& w, int64_t row, const BlockTensors& t, int64_t first,
               int64_t last) {
  const int64_t size = int64_t(layout.rows) * layout.cols;
  Word* out = w.row<Word>(row);
  std::fill(out, out + w.k, Word(0));
  const Word* in = static_cast<const Word*>(t.blocks) + row % layout.rows * layout.cols;
  for (int64_t i = first; i < last; ++i) {
    const int64_t column = int64_t(t.columns[i]) * layout.cols;
    const int cols = int(std::min<int64_t>(layout.cols, w.k - column));
    for (int j = 0; j < cols; ++j) out[column + j] = plus_zero(in[i * size + j]);
  }
}

template <class Word>
bool is_padding_zero(const BlockLayout& layout, const Place& place, const Word* block) {
  for (int i = 0; i < layout.rows; ++i, block += layout.cols) {
    for (int j = i < place.rows ? place.cols : 0; j < layout.cols; ++j) {
      if (!is_zero(block[j])) return false;
    }
  }
  return true;
}

// Offsets must begin at 0, never fall, and end at `live`.
void check_offsets(const char* name, const int32_t* offsets, int64_t count, int64_t live) {
  if (offsets[0] != 0) refuse<FormatError>(name, ": entry 0 is ", offsets[0], ", expected 0");
  for (int64_t i = 1; i <= count; ++i) {
    if (offsets[i] < offsets[i - 1]) {
      refuse<FormatError>(name, ": entry ", i, " is ", offsets[i], ", less than the one before it, ", offsets[i - 1]);
    }
  }
  if (offsets[count] != live) {
    refuse<FormatError>(name, ": the last entry is ", offsets[count], ", but there are ", live, " blocks");
  }
}

void check_places(const BlockLayout& layout, const BlockTensors& t, const WeightView& w) {
  const int64_t block_rows = layout.block_rows(w.n), block_cols = layout.block_cols(w.k);
  for (int64_t i = 0; i < t.live; ++i) {
    if (t.rows[i] < 0 || t.rows[i] >= block_rows || t.columns[i] < 0 || t.columns[i] >= block_cols) {
      refuse<FormatError>("block ", i, " at row ", t.rows[i], ", column ", t.columns[i], " lies outside the ",
                          block_rows, "x", block_cols, " grid");
    }
    const bool is_after =
        i == 0 || t.rows[i] > t.rows[i - 1] || (t.rows[i] == t.rows[i - 1] && t.columns[i] > t.columns[i - 1]);
    if (!is_after) refuse<FormatError>("block ", i, " overlaps or precedes the one before it");
  }
  check_offsets("row_offsets", t.row_offsets, block_rows, t.live);
  for (int64_t row = 0; row < block_rows; ++row) {
    for (int32_t i = t.row_offsets[row]; i < t.row_offsets[row + 1]; ++i) {
      if (t.rows[i] != row) {
        refuse<FormatError>("row_offsets: block ", i, " belongs to row ", row, ", but rows says ", t.rows[i]);
      }
    }
  }
}

void check_order(const BlockLayout& layout, const BlockTensors& t, const WeightView& w) {
  const int64_t block_cols = layout.block_cols(w.k);
  check_offsets("column_offsets", t.column_offsets, block_cols, t.live);
  std::vector<int32_t> next(t.column_offsets,
                            t.column_offsets + block_cols);  // of each column, its next entry of order
  for (int64_t i = 0; i < t.live; ++i) {
    const int32_t column = t.columns[i], entry = next[column]++;
    if (entry >= t.column_offsets[column + 1]) {
      refuse<FormatError>("column_offsets: column ", column, " has more blocks than its offsets say");
    }
    if (t.order[entry] != i) refuse<FormatError>("order: entry ", entry, " is ", t.order[entry], ", expected ", i);
  }
}

void index_blocks(const BlockLayout& layout, const WeightView& w, const uint8_t* grid, const BlockTensors& t) {
  const int64_t block_rows = layout.block_rows(w.n), block_cols = layout.block_cols(w.k);
  std::fill(t.column_offsets, t.column_offsets + block_cols + 1, 0);
  int32_t live = 0;
  for (int64_t row = 0; row < block_rows; ++row) {
    t.row_offsets[row] = live;
    for (int64_t column = 0; column < block_cols; ++column) {
      if (!grid[row * block_cols + column]) continue;
      t.rows[live] = int32_t(row);
      t.columns[live++] = int32_t(column);
      ++t.column_offsets[column + 1];
    }
  }
  t.row_offsets[block_rows] = live;
  for (int64_t column = 0; column < block_cols; ++column) t.column_offsets[column + 1] += t.column_offsets[column];
  std::vector<int32_t> next(t.column_offsets, t.column_offsets + block_cols);
  for (int32_t i = 0; i < live; ++i) t.order[next[t.columns[i]]++] = i;
}

}  // namespace

int64_t find_blocks(const BlockLayout& layout, const WeightView& w, uint8_t* grid) {
  const int64_t block_rows = layout.block_rows(w.n), block_cols = layout.block_cols(w.k);
  std::atomic<int64_t> live{0};
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    parallel_for(0, block_rows, grain(layout, w.k), [&](int64_t first, int64_t last) {
      std::vector<Word> united(w.k);  // the bits of a block row's rows
      std::vector<uint64_t> mask(mask_words(w.k));
      int64_t found = 0;
      for (int64_t i = first; i < last; ++i) {
        std::fill(united.begin(), united.end(), Word(0));
        for (int64_t row = i * layout.rows; row < std::min(w.n, (i + 1) * layout.rows); ++row) {
          for (int64_t j = 0; j < w.k; ++j) united[j] |= w.row<Word>(row)[j];
        }
        mask_row(united.data(), w.k, mask.data());
        for (int64_t j = 0; j < block_cols; ++j) {
          const bool is_live =
              has_bits(mask.data(), j * layout.cols, int(std::min<int64_t>(layout.cols, w.k - j * layout.cols)));
          grid[i * block_cols + j] = is_live;
          found += is_live;
        }
      }
      live += found;
    });
  });
  if (live > INT32_MAX) refuse<PatternError>("a BlockMatrix has at most ", INT32_MAX, " blocks, found ", live.load());
  return live;
}

void pack_blocks(const BlockLayout& layout, const WeightView& w, const uint8_t* grid, const BlockTensors& t) {
  index_blocks(layout, w, grid, t);
  const int64_t size = int64_t(layout.rows) * layout.cols;
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    parallel_for(0, t.live, std::max<int64_t>(1, (1 << 14) / size), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        copy_in(layout, w, Place(layout, w, t.rows[i], t.columns[i]), static_cast<Word*>(t.blocks) + i * size);
      }
    });
  });
}

void unpack_blocks(const BlockLayout& layout, const BlockTensors& t, const WeightView& w) {
  check_places(layout, t, w);
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    parallel_for(0, layout.block_rows(w.n), grain(layout, w.k), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        for (int64_t row = i * layout.rows; row < std::min(w.n, (i + 1) * layout.rows); ++row) {
          write_row<Word>(layout, w, row, t, t.row_offsets[i], t.row_offsets[i + 1]);
        }
      }
    });
  });
}

void check_blocks(const BlockLayout& layout, const BlockTensors& t, const WeightView& w) {
  check_places(layout, t, w);
  check_order(layout, t, w);
  const int64_t size = int64_t(layout.rows) * layout.cols;
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    for (int64_t i = 0; i < t.live; ++i) {
      const Place place(layout, w, t.rows[i], t.columns[i]);
      if (place.rows == layout.rows && place.cols == layout.cols) continue;
      if (!is_padding_zero(layout, place, static_cast<const Word*>(t.blocks) + i * size)) {
        refuse<FormatError>("blocks: block ", i, " holds a non-zero beyond the ", w.n, "x", w.k, " weight");
      }
    }
  });
}

}  // namespace ajour
