// A matrix product with max for the multiplication: a maximum and an addition for each of n * columns * columns.
#include "cpu/max_sums.h"

#include "cpu/simd.h"
#include "memory/parallel.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

constexpr int64_t kSegment =
    256;  // rows: a segment of a tile of `second` (32 KiB) stays in L1, and its sums stay exact
constexpr int kVectors = kMaxSumColumns / kLanes;
constexpr int kRows = kVectors <= 2 ? 8 : kVectors <= 4 ? 2 : 1;  // that leave registers for the sums of all columns

// sums[kRows][32] += over `count` rows; a row of sums is `stride` floats.
AJOUR_INLINE void add_segment(const float* first, const float* second, int64_t count, float* sums, int64_t stride) {
  Vec total[kRows][kVectors] = {};
  for (int64_t r = 0; r < count; r++, first += kMaxSumRows, second += kMaxSumColumns) {
    Vec columns[kVectors];
    AJOUR_UNROLL for (int v = 0; v < kVectors; v++) columns[v] = load(second + v * kLanes);
    AJOUR_UNROLL for (int i = 0; i < kRows; i++) {
      const Vec one = broadcast(first[i]);
      AJOUR_UNROLL for (int v = 0; v < kVectors; v++) total[i][v] = total[i][v] + max(one, columns[v]);
    }
  }
  AJOUR_UNROLL for (int i = 0; i < kRows; i++) {
    AJOUR_UNROLL for (int v = 0; v < kVectors; v++) {
      float* to = sums + i * stride + v * kLanes;
      store(to, load(to) + total[i][v]);
    }
  }
}

}  // namespace

void max_sums(const MaxSums& a) {
  const int64_t stride = a.second_tiles * kMaxSumColumns;
  parallel_for(0, a.second_tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j++) {
      float* const sums = a.sums + j * kMaxSumColumns;
      for (int64_t i = 0; i < a.first_tiles * kMaxSumRows; i++) memset(sums + i * stride, 0, kMaxSumColumns * 4);
      for (int64_t r = 0; r < a.n; r += kSegment) {
        const int64_t count = a.n - r < kSegment ? a.n - r : kSegment;
        const float* const second = a.second + (j * a.n + r) * kMaxSumColumns;
        for (int64_t i = 0; i < a.first_tiles; i++) {
          const float* const first = a.first + (i * a.n + r) * kMaxSumRows;
          for (int row = 0; row < kMaxSumRows; row += kRows) {
            add_segment(first + row, second, count, sums + (i * kMaxSumRows + row) * stride, stride);
          }
        }
      }
    }
  });
}

}  // namespace ajour::cpu::AJOUR_ISA
