#include "layout/chunked_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "memory/parallel.h"

namespace ajour {
namespace {

constexpr int64_t kPanelRows = 128;   // enough for sorting to pay, few enough to split over threads
constexpr int64_t kLeastPanels = 16;  // where the rows allow it: no panel has more than 1/16 of the work

int count(const uint64_t* words, int64_t first, int64_t last) {
  int total = 0;
  for (int64_t j = first; j < last; ++j) total += __builtin_popcountll(words[j]);
  return total;
}

// The columns of a byte's set bits, and their number: going by bytes, not bits, packs 4096x4096 with 30 % zeros in 35
// instead of 41 ms (256 columns a chunk, float32, one thread, Zen 5).
struct ByteColumns {
  constexpr ByteColumns() {
    for (int byte = 0; byte < 256; ++byte) {
      for (int bit = 0; bit < 8; ++bit) {
        if (byte >> bit & 1) columns[byte][counts[byte]++] = uint16_t(bit * kColumnStep);
      }
    }
  }
  uint16_t columns[256][8]{};
  uint8_t counts[256]{};
};
constexpr ByteColumns kByteColumns;

// The words of a chunk within a row.
struct Chunk {
  Chunk(int64_t chunk, const ChunkedRows& chunked)
      : first(std::min(chunk * chunked.chunk_columns() / 64, row_words(chunked.k))),
        last(std::min((chunk + 1) * chunked.chunk_columns() / 64, row_words(chunked.k))) {}
  int64_t first, last;
};

int count(const BitmapRows& rows, int64_t row, const Chunk& chunk) {
  return count(rows.bits + row * row_words(rows.k), chunk.first, chunk.last);
}

int64_t work_of(const BitmapRows& rows, int64_t chunk_count, int64_t first, int64_t last) {
  return rows.starts[last] - rows.starts[first] + kVisitCost * chunk_count * (last - first);
}

// Visits of a panel's rows, (row in the panel | non-zeros << 16), longest first and in the order of rows among equals.
struct SortedVisits {
  void sort(const BitmapRows& rows, int64_t first_row, int64_t last_row, const Chunk& chunk, bool empty_too) {
    int64_t ends[kMostColumns + 1] = {};
    const int64_t n = last_row - first_row;
    counts.resize(size_t(n));
    for (int64_t r = 0; r < n; ++r) ends[counts[size_t(r)] = count(rows, first_row + r, chunk)]++;
    size = empty_too ? n : n - ends[0];
    int64_t place = 0;
    for (int c = kMostColumns; c >= 0; --c) {
      const int64_t rows_of_count = ends[c];
      ends[c] = place;
      place += rows_of_count;
    }
    visits.resize(size_t(n));
    for (int64_t r = 0; r < n; ++r)
      visits[size_t(ends[counts[size_t(r)]]++)] = uint32_t(r) | uint32_t(counts[size_t(r)]) << 16;
  }
  std::vector<int> counts;
  std::vector<uint32_t> visits;
  int64_t size = 0;  // of visits, those that a cell has
};

// Columns of the set bits of a row's chunk. Nothing is written from `end` on; before it, what follows is written later.
uint16_t* write_columns(const uint64_t* words, const Chunk& chunk, uint16_t* out, const uint16_t* end) {
  for (int64_t j = chunk.first; j < chunk.last; ++j) {
    for (int shift = 0; shift < 64; shift += 8) {
      const int byte = words[j] >> shift & 0xff;
      const int base = int(64 * (j - chunk.first) + shift) * kColumnStep;
      uint16_t columns[8];
      for (int i = 0; i < 8; ++i) columns[i] = uint16_t(base + kByteColumns.columns[byte][i]);
      if (end - out >= 8)
        memcpy(out, columns, sizeof columns);
      else
        memcpy(out, columns, kByteColumns.counts[byte] * sizeof *out);
      out += kByteColumns.counts[byte];
    }
  }
  return out;
}

template <class Word>
void pack_panel(const BitmapRows& rows, const ChunkedRows& chunked, int64_t panel) {
  const int64_t first_row = chunked.first_row(panel), last_row = chunked.first_row(panel + 1);
  std::vector<int64_t> taken(size_t(last_row - first_row), 0);
  SortedVisits sorted;
  for (int64_t c = 0; c < chunked.chunk_count; ++c) {
    const Chunk chunk(c, chunked);
    sorted.sort(rows, first_row, last_row, chunk, c == 0);
    const int64_t* cell = chunked.cell(c, panel);
    std::copy_n(sorted.visits.begin(), sorted.size, chunked.visits + cell[0]);
    Word* values = static_cast<Word*>(chunked.values) + cell[1];
    uint16_t *columns = chunked.columns + cell[1], *const end = chunked.columns + cell[3];
    for (int64_t v = 0; v < sorted.size; ++v) {
      const int64_t r = sorted.visits[size_t(v)] & 0xffff, nonzeros = sorted.visits[size_t(v)] >> 16;
      columns = write_columns(rows.bits + (first_row + r) * row_words(rows.k), chunk, columns, end);
      values = std::copy_n(static_cast<const Word*>(rows.values) + rows.starts[first_row + r] + taken[size_t(r)],
                           nonzeros, values);
      taken[size_t(r)] += nonzeros;
    }
  }
}

// Calls visit(row, chunk, non-zeros, first value) for each visit of a panel, chunk after chunk.
template <class Visit>
void each_visit(const ChunkedRows& chunked, int64_t panel, const Visit& visit) {
  for (int64_t c = 0; c < chunked.chunk_count; ++c) {
    const int64_t* cell = chunked.cell(c, panel);
    int64_t value = cell[1];
    for (int64_t v = cell[0]; v < cell[2]; ++v) {
      const int64_t nonzeros = chunked.visits[v] >> 16;
      visit(chunked.first_row(panel) + (chunked.visits[v] & 0xffff), c, nonzeros, value);
      value += nonzeros;
    }
  }
}

template <class Word>
void unpack_panel(const ChunkedRows& chunked, const BitmapRows& rows, int64_t panel) {
  const int64_t first_row = chunked.first_row(panel), last_row = chunked.first_row(panel + 1);
  std::vector<int64_t> filled(size_t(last_row - first_row), 0);
  const int64_t width = row_words(rows.k);
  std::fill(rows.bits + first_row * width, rows.bits + last_row * width, 0);
  each_visit(chunked, panel, [&](int64_t row, int64_t c, int64_t nonzeros, int64_t value) {
    const int64_t base = c * chunked.chunk_columns();
    for (int64_t i = value; i < value + nonzeros; ++i) {
      const int64_t column = base + chunked.columns[i] / kColumnStep;
      rows.bits[row * width + column / 64] |= uint64_t(1) << column % 64;
    }
    int64_t& done = filled[size_t(row - first_row)];
    std::copy_n(static_cast<const Word*>(chunked.values) + value, nonzeros,
                static_cast<Word*>(rows.values) + rows.starts[row] + done);
    done += nonzeros;
  });
}

// How many panels the rows are cut into; fills `panels`, with room for n / kPanelAlign + 2 entries.
int64_t cut_panels(const BitmapRows& rows, int64_t chunk_count, int64_t* panels) {
  const int64_t most = std::max<int64_t>(1, work_of(rows, chunk_count, 0, rows.n) / kLeastPanels);
  int64_t count = 0, row = 0;
  while (row < rows.n) {
    panels[2 * count] = row;
    panels[2 * count + 1] = work_of(rows, chunk_count, 0, row);
    int64_t end = std::min(row + kPanelAlign, rows.n);
    while (end < rows.n && end - row < kPanelRows &&
           work_of(rows, chunk_count, row, std::min(end + kPanelAlign, rows.n)) <= most) {
      end = std::min(end + kPanelAlign, rows.n);
    }
    row = end;
    count++;
  }
  panels[2 * count] = rows.n;
  panels[2 * count + 1] = work_of(rows, chunk_count, 0, rows.n);
  return count;
}

// Fills the cells; returns the number of visits.
int64_t cut_cells(const BitmapRows& rows, const ChunkedRows& chunked) {
  parallel_for(0, chunked.panel_count, 1, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      for (int64_t c = 0; c < chunked.chunk_count; ++c) {
        int64_t visits = 0, nonzeros = 0;
        for (int64_t row = chunked.first_row(panel); row < chunked.first_row(panel + 1); ++row) {
          const int found = count(rows, row, Chunk(c, chunked));
          visits += found > 0 || c == 0;
          nonzeros += found;
        }
        int64_t* next = chunked.cell(c, panel) + 2;
        next[0] = visits;
        next[1] = nonzeros;
      }
    }
  });
  const int64_t cells = chunked.chunk_count * chunked.panel_count;
  chunked.cells[0] = chunked.cells[1] = 0;
  for (int64_t i = 2; i < 2 * cells + 2; ++i) chunked.cells[i] += chunked.cells[i - 2];
  return chunked.cells[2 * cells];
}

std::vector<int64_t> room_for_panels(int64_t n) { return std::vector<int64_t>(size_t(2 * (n / kPanelAlign + 2))); }

constexpr int64_t kHeader = 2;

}  // namespace

int64_t chunk_index_size(const BitmapRows& rows, int64_t chunk_count) {
  std::vector<int64_t> panels = room_for_panels(rows.n);
  const int64_t panel_count = cut_panels(rows, chunk_count, panels.data());
  std::vector<int64_t> cells(size_t(2 * (chunk_count * panel_count + 1)));
  const int64_t visits = cut_cells(rows, {nullptr, nullptr, panels.data(), cells.data(), nullptr, rows.n, rows.k,
                                          panel_count, chunk_count, rows.itemsize});
  return kHeader + 2 * (panel_count + 1) + int64_t(cells.size()) + (visits + 1) / 2;
}

ChunkedRows read_chunked_rows(void* values, uint16_t* columns, int64_t* index, int64_t n, int64_t k, int itemsize) {
  int64_t* panels = index + kHeader;
  int64_t* cells = panels + 2 * (index[0] + 1);
  uint32_t* visits = reinterpret_cast<uint32_t*>(cells + 2 * (index[0] * index[1] + 1));
  return {values, columns, panels, cells, visits, n, k, index[0], index[1], itemsize};
}

void pack_chunked_rows(const BitmapRows& rows, int64_t chunk_count, void* values, uint16_t* columns, int64_t* index) {
  std::vector<int64_t> panels = room_for_panels(rows.n);
  index[0] = cut_panels(rows, chunk_count, panels.data());
  index[1] = chunk_count;
  const ChunkedRows chunked = read_chunked_rows(values, columns, index, rows.n, rows.k, rows.itemsize);
  std::copy_n(panels.begin(), 2 * (index[0] + 1), chunked.panels);
  const int64_t visits = cut_cells(rows, chunked);
  if (visits % 2) chunked.visits[visits] = 0;
  by_word(rows.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    parallel_for(0, chunked.panel_count, 1, [&](int64_t first, int64_t last) {
      for (int64_t panel = first; panel < last; ++panel) pack_panel<Word>(rows, chunked, panel);
    });
    const int64_t nonzeros = rows.starts[rows.n];
    std::fill_n(static_cast<Word*>(values) + nonzeros, kValueTail, Word(0));
    std::fill_n(columns + nonzeros, kValueTail, uint16_t(0));
  });
}

void unpack_chunked_rows(const ChunkedRows& chunked, const BitmapRows& rows) {
  std::fill_n(rows.starts, rows.n + 1, 0);
  parallel_for(0, chunked.panel_count, 1, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      each_visit(chunked, panel,
                 [&](int64_t row, int64_t, int64_t nonzeros, int64_t) { rows.starts[row + 1] += nonzeros; });
    }
  });
  for (int64_t row = 0; row < rows.n; ++row) rows.starts[row + 1] += rows.starts[row];
  by_word(rows.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    parallel_for(0, chunked.panel_count, 1, [&](int64_t first, int64_t last) {
      for (int64_t panel = first; panel < last; ++panel) unpack_panel<Word>(chunked, rows, panel);
    });
    std::fill_n(static_cast<Word*>(rows.values) + rows.starts[rows.n], kValueTail, Word(0));
  });
}

}  // namespace ajour
