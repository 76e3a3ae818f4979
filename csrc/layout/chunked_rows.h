// Chunked rows: an unstructured weight cut along k, its rows sorted by their non-zeros, as the CPU's many-row kernel
// reads it, and bit for bit back.
//
// The columns are cut into chunks of whole words of 64, at most 256, so that a chunk of x for 32 tokens (128 bytes a
// column) stays in the L1 cache, and the rows into panels of up to 128. A cell is one chunk of one panel: a list of
// visits, one for each of its rows, longest first, so that neighbouring visits take the same branches. The first chunk
// visits every row, the others only rows that have something there. Nothing is padded: no product is made that the
// weight does not have.
//   values   [nonzeros + kValueTail] of cell after cell, visit after visit, in the order of their columns
//   columns  uint16 [nonzeros + kValueTail] (column in the chunk) * kColumnStep
//   visits   uint32 [visits] row in the panel | non-zeros << 16
//   cells    int64 [chunks * panels + 1][2] first visit, first value; chunk after chunk
//   panels   int64 [panels + 1][2] first row, and a measure of the work before it, for an even split over threads
#pragma once
#include <cstdint>

#include "layout/bitmap_rows.h"

namespace ajour {

constexpr int kPanelAlign = 16;  // the first row of a panel is a multiple
constexpr int kColumnStep =
    16;  // the bytes of a column are a multiple of this times 1, 2, 4 or 8, as x86 addresses scale
constexpr int64_t kVisitCost = 8;  // of a visit, in non-zeros

constexpr int64_t kMostColumns = 256;  // of a chunk

// How many chunks of at most `columns` columns a row has.
constexpr int64_t chunks_of(int64_t k, int64_t columns) { return k > 0 ? (k + columns - 1) / columns : 1; }

struct ChunkedRows {
  void* values;
  uint16_t* columns;
  uint32_t* visits;
  int64_t* cells;
  int64_t* panels;
  int64_t n, k, panel_count, chunk_count;
  int itemsize;

  int64_t chunk_columns() const { return ((k + chunk_count - 1) / chunk_count + 63) / 64 * 64; }
  int64_t first_row(int64_t panel) const { return panels[2 * panel]; }
  int64_t work_before(int64_t panel) const { return panels[2 * panel + 1]; }
  const int64_t* cell(int64_t chunk, int64_t panel) const { return cells + 2 * (chunk * panel_count + panel); }
};

// How many panels the rows are cut into, for that many chunks; fills `panels`, which must have room for
// n / kPanelAlign + 2 entries.
int64_t cut_panels(const BitmapRows& rows, int64_t chunk_count, int64_t* panels);

// Fills `cells` of chunk_count * panel_count + 1 entries; returns the number of visits.
int64_t cut_cells(const BitmapRows& rows, const ChunkedRows& chunked);

// Fills values, columns and visits, where panels and cells are those of cut_panels and cut_cells.
void pack_chunked_rows(const BitmapRows& rows, const ChunkedRows& chunked);

// The inverse: fills bits, starts and values of `rows`.
void unpack_chunked_rows(const ChunkedRows& chunked, const BitmapRows& rows);

}  // namespace ajour
