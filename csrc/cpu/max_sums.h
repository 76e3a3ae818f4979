// Sums of maxima over all pairs of columns, as a search over permutations of columns needs them.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace ajour::cpu {

constexpr int kMaxSumRows = 8, kMaxSumColumns = 32;  // columns of `first` and of `second` in a tile

// sums[8 i + p][32 j + q] = sum over r of max(first[i][r][p], second[j][r][q]), in float32 segment by segment.
struct MaxSums {
  const float* first;   // [first_tiles][n][8]
  const float* second;  // [second_tiles][n][32]
  int64_t first_tiles, second_tiles, n;
  float* sums;  // [8 * first_tiles][32 * second_tiles]
};

AJOUR_PER_ISA(max_sums, MaxSums)

}  // namespace ajour::cpu
