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
//   index    int64: panels, chunks, and then
//     panels   [panels + 1][2] first row, and a measure of the work before it, for an even split over threads
//     cells    [chunks * panels + 1][2] first visit, first value; chunk after chunk
//     visits   uint32 [visits], two to a word: row in the panel | non-zeros << 16
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
  int64_t *panels, *cells;
  uint32_t* visits;
  int64_t n, k, panel_count, chunk_count;
  int itemsize;

  int64_t chunk_columns() const { return ((k + chunk_count - 1) / chunk_count + 63) / 64 * 64; }
  int64_t first_row(int64_t panel) const { return panels[2 * panel]; }
  int64_t* cell(int64_t chunk, int64_t panel) const { return cells + 2 * (chunk * panel_count + panel); }
};

// Entries of the index of a weight cut into that many chunks.
int64_t chunk_index_size(const BitmapRows& rows, int64_t chunk_count);

// Fills values, columns and index.
void pack_chunked_rows(const BitmapRows& rows, int64_t chunk_count, void* values, uint16_t* columns, int64_t* index);

// What an index describes.
ChunkedRows read_chunked_rows(void* values, uint16_t* columns, int64_t* index, int64_t n, int64_t k, int itemsize);

// The inverse of packing: fills bits, starts and values of `rows`.
void unpack_chunked_rows(const ChunkedRows& chunked, const BitmapRows& rows);

}  // namespace ajour
