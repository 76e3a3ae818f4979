// How block products cut their work: registers for a tile, tokens into tiles, items into shares of equal cost.
#pragma once
#include <cstdint>

#include "cpu/simd.h"

namespace ajour::cpu::AJOUR_ISA {

constexpr int64_t kWorthThreads = 1 << 19;  // multiplications below which a second thread does not pay

#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kMostRows = 8;  // of a tile with tokens in lanes: 24 sums of 32 registers
#else
constexpr int kMostRows = 4;  // 12 of 16
#endif

// Of a tile with rows in lanes.
#if defined(__AVX512F__)
constexpr int kTokens = 12;
#elif defined(__AVX2__)
constexpr int kTokens = 6;
#elif defined(__ARM_NEON)
constexpr int kTokens = 8;
#else
constexpr int kTokens = 4;
#endif
constexpr int kThird = kTokens >= 6 ? kTokens / 3 : 1;  // narrower last tiles: a third, or two

AJOUR_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
AJOUR_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
AJOUR_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
AJOUR_INLINE int64_t in_lines(int64_t words) { return divide_up(words, 16) * 16; }  // of 64 bytes

// Tokens [first, first + count) cut into tiles: all `width` wide but the last, which is `last` wide.
struct Tiles {
  int64_t first, count, number;
  int width, last;
  int64_t stride;  // words from one packed tile to the next

  int width_of(int64_t tile) const { return tile == number - 1 ? last : width; }
  int tokens_in(int64_t tile) const { return int(min64(width, count - tile * width)); }
};

// Tiles of `words` words for each token; the last one is as narrow as it can be, with tokens in lanes a multiple of
// `step`.
inline Tiles cut_into_tiles(int64_t first, int64_t count, int width, int64_t words, bool rows_in_lanes, int step) {
  const int64_t number = divide_up(count, width);
  const int left = int(count - (number - 1) * width);
  const int third = left <= kThird ? kThird : left <= 2 * kThird ? 2 * kThird : kTokens;
  const int last = rows_in_lanes ? third : int(divide_up(left, step) * step);
  return {first, count, number, width, last, in_lines(words * width + kLanes)};
}

// The first of so many items that begins at `cost` or later; cost_before(i): of the items before item i.
template <class Cost>
int64_t first_at(int64_t cost, int64_t items, const Cost& cost_before) {
  int64_t low = 0, high = items;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (cost_before(middle) < cost) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace ajour::cpu::AJOUR_ISA
