// x as the kernels read it: tiles of `width` tokens, column after column, so that one column of a tile is contiguous.
#pragma once
#include "cpu/simd.h"

namespace ajour::cpu::AJOUR_ISA {

typedef uint32_t WordAnywhere __attribute__((aligned(1), may_alias));

// A column of a tile is one float ...
struct Floats {
  static constexpr int kColumns = 1;  // of x, in a word

  template <class T>
  AJOUR_INLINE_MEMBER static Words read(const T* row, int64_t word) {
    return as_words(load(row + word));
  }
  template <class T>
  AJOUR_INLINE_MEMBER static Words read(const T* row, int64_t word, int64_t k) {  // zeros beyond k
    const int64_t left = k - word;
    return left <= 0 ? Words{} : as_words(load(row + word, int(left < kLanes ? left : kLanes)));
  }
  AJOUR_INLINE_MEMBER static Vec multiply_add(Words w, Words x, Vec sum) {
    return fma(as_floats(w), as_floats(x), sum);
  }
};

// ... or a pair of neighbouring bf16 columns.
struct Pairs {
  static constexpr int kColumns = 2;

  AJOUR_INLINE_MEMBER static Words read(const BFloat16* row, int64_t word) {
    return load(reinterpret_cast<const uint32_t*>(row) + word);
  }
  AJOUR_INLINE_MEMBER static Words read(const BFloat16* row, int64_t word, int64_t k) {
    uint16_t halves[2 * kLanes] = {};
    const int64_t left = k - 2 * word;
    for (int64_t i = 0; i < left && i < 2 * kLanes; i++) halves[i] = row[2 * word + i].bits;
    return load(reinterpret_cast<const uint32_t*>(halves));
  }
  AJOUR_INLINE_MEMBER static Vec multiply_add(Words w, Words x, Vec sum) { return dot_pairs(sum, w, x); }
};

// Packs kLanes tokens into lanes 0..kLanes-1 of the columns [words][width] at `out`. Where width < kLanes the lanes
// beyond it run into the next column, which is written later: a tile needs kLanes words of room behind it.
template <class Form, class T>
void pack_tokens(const T* const (&rows)[kLanes], int64_t k, int64_t words, uint32_t* out, int width) {
  for (int64_t word = 0; word < words; word += kLanes) {
    Words block[kLanes];
    const bool whole = (word + kLanes) * Form::kColumns <= k;
    if (whole) {
      AJOUR_UNROLL for (int i = 0; i < kLanes; i++) block[i] = Form::read(rows[i], word);
    } else {
      for (int i = 0; i < kLanes; i++) block[i] = Form::read(rows[i], word, k);
    }
    transpose(block);
    uint32_t* column = out + word * width;
    if (word + kLanes <= words) {
      AJOUR_UNROLL for (int i = 0; i < kLanes; i++, column += width) store(column, block[i]);
    } else {
      for (int i = 0; i < words - word; i++, column += width) store(column, block[i]);
    }
  }
}

// For columns in pairs from anywhere: 2 * kLanes tokens of each column as halves [columns][width], ordered so that
// interleaving two columns (zip_halves) gives pairs of the first kLanes tokens, then of the last.
inline void pack_loose_tokens(const BFloat16* const (&rows)[2 * kLanes], int64_t k, int64_t columns, uint32_t* out,
                              int width) {
  for (int64_t word = 0; 2 * word < columns; word += kLanes) {
    Words block[2][kLanes];
    for (int half = 0; half < 2; half++) {
      for (int i = 0; i < kLanes; i++) {
        const BFloat16* row = rows[kLanes * half + i];
        block[half][i] = 2 * (word + kLanes) <= k ? Pairs::read(row, word) : Pairs::read(row, word, k);
      }
      transpose(block[half]);
    }
    uint32_t* column = out + word * width;  // two columns of width / 2 words
    for (int i = 0; i < kLanes; i++) {
      const Words a = block[0][i], b = block[1][i];
      if (2 * (word + i) < columns) store(column, join_halves(a & 0xffffu, b & 0xffffu));
      column += width / 2;
      if (2 * (word + i) + 1 < columns) store(column, join_halves(a >> 16, b >> 16));
      column += width / 2;
    }
  }
}

// A packed tile of tokens: [words][kWidth] ...
template <int kWidth>
struct PackedTile {
  const uint32_t* at;

  AJOUR_INLINE_MEMBER PackedTile from(int64_t word) const { return {at + word * kWidth}; }
  AJOUR_INLINE_MEMBER PackedTile next() const { return *this; }
  AJOUR_INLINE_MEMBER void fetch(int64_t) const {}
  AJOUR_INLINE_MEMBER Words broadcast_token(int t) const { return broadcast(at[t]); }
  AJOUR_INLINE_MEMBER void advance() { at += kWidth; }
};

// ... or tokens where they lie, `stride` bytes apart: three to a pointer, as addresses scale an index by 1 and by 2.
// fetched: how many of them are fetched a block ahead, all or none.
template <int kWidth>
struct TileInPlace {
  const char* at[(kWidth + 2) / 3];
  int64_t stride, fetched;

  AJOUR_INLINE_MEMBER TileInPlace from(int64_t word) const {
    TileInPlace moved = *this;
    AJOUR_UNROLL for (int i = 0; i < (kWidth + 2) / 3; i++) moved.at[i] += word * 4;
    return moved;
  }
  AJOUR_INLINE_MEMBER TileInPlace next() const {  // good for nothing but its first token
    TileInPlace moved = *this;
    moved.at[0] += kWidth * stride;
    return moved;
  }
  // Token t from here on, up to 128 bytes: what a block of 32 words meets.
  AJOUR_INLINE_MEMBER void fetch(int64_t t) const {
    if (t >= fetched) return;
    __builtin_prefetch(at[0] + t * stride), __builtin_prefetch(at[0] + t * stride + 64);
  }
  AJOUR_INLINE_MEMBER Words broadcast_token(int t) const {
    return broadcast(*reinterpret_cast<const WordAnywhere*>(at[t / 3] + t % 3 * stride));
  }
  AJOUR_INLINE_MEMBER void advance() { AJOUR_UNROLL for (int i = 0; i < (kWidth + 2) / 3; i++) at[i] += 4; }
};

}  // namespace ajour::cpu::AJOUR_ISA
