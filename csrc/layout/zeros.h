// Where a weight's zeros are: one bit for each element, and the census from which every pattern is told.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>

#include "memory/both.h"
#include "memory/views.h"

namespace ajour {

// -0.0 is a zero, and the only other bits that are.
template <class Word>
AJOUR_BOTH constexpr bool is_zero(Word word) {
  return Word(word << 1) == 0;
}

// Zeros become +0.0; everything else stays as it is, bit for bit.
template <class Word>
AJOUR_BOTH constexpr Word plus_zero(Word word) {
  return is_zero(word) ? Word(0) : word;
}

// Without the popcnt instruction, which plain x86-64 lacks, the builtin is a call that is three times as slow.
AJOUR_BOTH constexpr int count_bits(uint64_t bits) {
  bits -= bits >> 1 & 0x5555555555555555u;
  bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
  bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return int(bits * 0x0101010101010101u >> 56);
}

// A row's mask: bit j % 64 of word j / 64 is set where element j is not zero; bits at k and beyond are clear.
constexpr int64_t mask_words(int64_t k) { return (k + 63) / 64; }

template <class Word>
uint64_t mask_of_64(const Word* row) {
  uint8_t live[64];  // the compiler vectorizes this loop: 64 comparisons become bytes of 0 and 1
  for (int j = 0; j < 64; ++j) live[j] = !is_zero(row[j]);
  uint64_t mask = 0;
  for (int byte = 0; byte < 8; ++byte) {
    uint64_t bytes;
    std::memcpy(&bytes, live + 8 * byte, 8);
    mask |= (bytes * 0x0102040810204080u >> 56) << 8 * byte;  // gathers eight lowest bits into one byte
  }
  return mask;
}

template <class Word>
void mask_row(const Word* row, int64_t k, uint64_t* mask) {
  for (int64_t word = 0; word < k / 64; ++word) mask[word] = mask_of_64(row + 64 * word);
  if (k % 64) {
    Word rest[64] = {};
    std::memcpy(rest, row + k / 64 * 64, k % 64 * sizeof(Word));
    mask[k / 64] = mask_of_64(rest);
  }
}

// Bits [begin, begin + count) of a mask, 1 <= count <= 64; reads the word after only if a bit lies in it.
inline uint64_t bits_at(const uint64_t* mask, int64_t begin, int count) {
  const int shift = int(begin % 64);
  uint64_t bits = mask[begin / 64] >> shift;
  if (shift + count > 64) bits |= mask[begin / 64 + 1] << (64 - shift);
  return count == 64 ? bits : bits & ((uint64_t(1) << count) - 1);
}

// The groups and the blocks that a census counts.
constexpr std::array<int, 5> CENSUS_GROUPS = {2, 4, 8, 16, 32};
struct BlockCount {
  int rows, cols;
  int64_t live = 0;    // blocks that hold a non-zero
  int64_t stored = 0;  // elements of the weight inside them
};

struct Census {
  int64_t nonzeros = 0, zero_rows = 0, zero_cols = 0;
  std::array<int, 5> keeps = {};  // the most non-zeros in any group
  int64_t beyond_two = 0;         // non-zeros beyond the first two of their group of four
  std::array<BlockCount, 14> blocks = {{{1, 4},
                                        {1, 8},
                                        {1, 16},
                                        {1, 32},
                                        {4, 1},
                                        {8, 1},
                                        {16, 1},
                                        {32, 1},
                                        {4, 4},
                                        {8, 8},
                                        {16, 16},
                                        {32, 32},
                                        {64, 64},
                                        {128, 128}}};
};

// One pass over the weight on torch's threads.
Census census(const WeightView& w);

}  // namespace ajour
