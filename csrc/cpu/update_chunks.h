// The chunks of many parameters as one range of work, so that threads are equally busy whatever the sizes.
#pragma once
#include "cpu/simd.h"
#include "layout/update_table.h"
#include "memory/parallel.h"

namespace ajour::cpu::AJOUR_ISA {

AJOUR_INLINE int64_t chunks_of(const UpdateRow& row) { return (row.numel + kUpdateChunk - 1) / kUpdateChunk; }

// Calls body(row, first entry, entries, place) for each chunk; place counts the chunks of all rows.
template <class Body>
static inline void for_chunks(const UpdateRow* rows, int64_t count, const Body& body) {
  if (!count) return;
  const int64_t total = rows[count - 1].first_chunk + chunks_of(rows[count - 1]);
  parallel_for(0, total, 4, [&](int64_t first, int64_t last) {
    int64_t low = 0, high = count;  // the last row that begins at or before `first`
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (rows[middle].first_chunk <= first ? low : high) = middle;
    }
    for (int64_t place = first; place < last; place++) {
      while (place >= rows[low].first_chunk + chunks_of(rows[low])) low++;
      const int64_t begin = (place - rows[low].first_chunk) * kUpdateChunk, left = rows[low].numel - begin;
      body(low, begin, left < kUpdateChunk ? left : kUpdateChunk, place);
    }
  });
}

}  // namespace ajour::cpu::AJOUR_ISA
