// The inner loops of block_linear: one panel of the weight against one tile of tokens.
#pragma once
#include "cpu/epilogue.h"
#include "cpu/token_tiles.h"

namespace ajour::cpu::AJOUR_ISA {

// A panel's live columns (layout/block_panels.h): words are floats, or pairs of bf16.
struct Strip {
  const uint32_t* weights;  // [words][rows]
  const int32_t* starts;    // [units] columns of x
  int64_t units;
  int unit;             // words that follow one another in x
  int rows;             // stored
  int32_t zero_column;  // of x, for a pair that lacks its second column
};

// Weights that follow are fetched while these are multiplied, `step` bytes for each word, all from memory by the time
// they are needed. Spread out: in bursts they keep the products waiting (4096x4096 in 32x32 blocks at 10 %, 128 tokens:
// 151 GFLOP/s, without any 191; Zen 5).
struct Ahead {
  const char* at;
  int64_t step;

  AJOUR_INLINE_MEMBER void fetch() {
    __builtin_prefetch(at, 0, 2);
    at += step;
  }
};

// Where a tile's results go.
template <class T>
struct Target {
  Epilogue<T> epilogue;
  T* y;
  int64_t n;

  // Fetches where rows [row, row + count) of `tokens` tokens will be written, so that the sums don't wait for it.
  AJOUR_INLINE_MEMBER void fetch(int64_t token, int tokens, int64_t row, int count) const {
    constexpr int kLine = 64 / sizeof(T);
    const T* at = y + token * n + row;
    for (int t = 0; t < tokens; t++, at += n) {
      for (int i = 0; i < count; i += kLine) __builtin_prefetch(at + i, 1);
    }
  }

  // Writes the sums of rows [row, row + count) of the weight for one token; count <= kLanes.
  AJOUR_INLINE_MEMBER void put(Vec sums, int64_t token, int64_t row, int count) const {
    const Vec result = epilogue.finish(sums, token, row, count);
    if (count == kLanes) {
      store(y + token * n + row, result);
    } else {
      store(y + token * n + row, result, count);
    }
  }
};

// Columns whose products registers add up before they join a total: in one chain of additions over all of k rounding
// errors grow to four times those of a dense library, which adds up in blocks as well.
constexpr int kSegment = 64;  // with 96, a MiniLM layer of 1536 columns at 20 % had 4.7 times the error of dense

// A strip cut into segments of so many units, of `columns` columns to a word.
AJOUR_INLINE int64_t segment_units(const Strip& s, int columns) {
  return s.unit * columns < kSegment ? kSegment / (s.unit * columns) : 1;
}

// Moves `part`, a segment of `s`, on by its units, which took `words` words of weights; false past the end.
AJOUR_INLINE bool next_segment(const Strip& s, int64_t words, Strip& part) {
  const int64_t units = part.units, left = s.units - (part.starts - s.starts) - units;
  if (left <= 0) return false;
  part.starts += units;
  part.weights += words * s.rows;
  part.units = left < units ? left : units;
  return true;
}

AJOUR_INLINE void add_to(float* total, Vec sum, bool is_first) { store(total, is_first ? sum : load(total) + sum); }

// Runs body(segment, words) for all segments of a strip, each of which leaves its sums in `sums`; so do the totals,
// which the memory holds and which a strip of one segment does not touch.
template <int kA, int kB, class Body>
AJOUR_INLINE void in_segments(const Strip& s, int columns, Vec (&sums)[kA][kB], const Body& body) {
  alignas(64) float totals[kA * kB * kLanes];
  const int64_t units = segment_units(s, columns);
  int64_t first = 0;
  for (;; first += units) {
    const int64_t left = s.units - first;
    body(first, left < units ? s.units : first + units);
    if (left <= units) break;
    AJOUR_UNROLL for (int a = 0; a < kA; a++) AJOUR_UNROLL for (int b = 0; b < kB; b++)
        add_to(totals + (a * kB + b) * kLanes, sums[a][b], first == 0);
  }
  if (!first) return;
  AJOUR_UNROLL for (int a = 0; a < kA; a++) AJOUR_UNROLL for (int b = 0; b < kB; b++) sums[a][b] =
      load(totals + (a * kB + b) * kLanes) + sums[a][b];
}

// sums[v][t] of rows v * kLanes.. (lanes) and token t; x: [words][kTokens].
template <class Form, int kVecs, int kTokens>
AJOUR_INLINE void rows_in_lanes(const Strip& s, int row, const uint32_t* x, Ahead& next, Vec (&sums)[kVecs][kTokens]) {
  const uint32_t* weights = s.weights + row;
  Ahead ahead = next;
  in_segments(s, Form::kColumns, sums, [&](int64_t first, int64_t last) __attribute__((always_inline)) {
    AJOUR_UNROLL for (int v = 0; v < kVecs; v++) AJOUR_UNROLL for (int t = 0; t < kTokens; t++) sums[v][t] = zero();
    for (int64_t u = first; u < last; u++) {
      const uint32_t* column = x + int64_t(uint32_t(s.starts[u]) / Form::kColumns) * kTokens;
      for (int i = 0; i < s.unit; i++) {
        Words w[kVecs];
        ahead.fetch();
        AJOUR_UNROLL for (int v = 0; v < kVecs; v++) w[v] = load(weights + v * kLanes);
        AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
          const Words value = broadcast(column[t]);
          AJOUR_UNROLL for (int v = 0; v < kVecs; v++) sums[v][t] = Form::multiply_add(w[v], value, sums[v][t]);
        }
        column += kTokens;
        weights += s.rows;
      }
    }
  });
  next = ahead;
}

// The same without packed x: token t's row of words begins at x[t]. kSplit sums for each result hide the latency of the
// additions; they are added up in a fixed order.
template <class Form, int kVecs, int kTokens, int kSplit>
AJOUR_INLINE void rows_in_lanes_direct(const Strip& s, int row, const WordAnywhere* const (&x)[kTokens],
                                       Vec (&sums)[kVecs][kTokens]) {
  Vec parts[kSplit][kVecs][kTokens];
  const uint32_t* weights = s.weights + row;
  const auto step = [&](int q, int64_t word) __attribute__((always_inline)) {
    Words w[kVecs];
    AJOUR_UNROLL for (int v = 0; v < kVecs; v++) w[v] = load(weights + v * kLanes);
    AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
      const Words value = broadcast(x[t][word]);
      AJOUR_UNROLL for (int v = 0; v < kVecs; v++) parts[q][v][t] = Form::multiply_add(w[v], value, parts[q][v][t]);
    }
    weights += s.rows;
  };
  in_segments(s, Form::kColumns, sums, [&](int64_t first, int64_t last) __attribute__((always_inline)) {
    AJOUR_UNROLL for (int q = 0; q < kSplit; q++) AJOUR_UNROLL for (int v = 0; v < kVecs; v++)
        AJOUR_UNROLL for (int t = 0; t < kTokens; t++) parts[q][v][t] = zero();
    if (s.unit == 1) {
      int64_t u = first;
      for (; u + kSplit <= last; u += kSplit) {
        AJOUR_UNROLL for (int q = 0; q < kSplit; q++) step(q, uint32_t(s.starts[u + q]) / Form::kColumns);
      }
      for (; u < last; u++) step(0, uint32_t(s.starts[u]) / Form::kColumns);
    } else {
      for (int64_t u = first; u < last; u++) {
        const int64_t word = uint32_t(s.starts[u]) / Form::kColumns;
        int i = 0;
        for (; i + kSplit <= s.unit; i += kSplit) {
          AJOUR_UNROLL for (int q = 0; q < kSplit; q++) step(q, word + i + q);
          __builtin_prefetch(weights + 1024);
        }
        for (; i < s.unit; i++) step(0, word + i);
      }
    }
    AJOUR_UNROLL for (int v = 0; v < kVecs; v++) AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
      sums[v][t] = parts[0][v][t];
      AJOUR_UNROLL for (int q = 1; q < kSplit; q++) sums[v][t] = sums[v][t] + parts[q][v][t];
    }
  });
}

// out[r][token] of rows row + r and a tile of kVecs * kLanes tokens (lanes); x: [words][tokens].
template <class Form, int kRows, int kVecs>
AJOUR_INLINE void segment_of_tokens(const Strip& s, int row, const uint32_t* x, Ahead& next, bool is_first,
                                    float* out) {
  Ahead ahead = next;
  constexpr int kTokens = kVecs * kLanes;
  Vec sums[kRows][kVecs];
  AJOUR_UNROLL for (int r = 0; r < kRows; r++) AJOUR_UNROLL for (int v = 0; v < kVecs; v++) sums[r][v] = zero();
  const uint32_t* weights = s.weights + row;
  for (int64_t u = 0; u < s.units; u++) {
    const uint32_t* column = x + int64_t(uint32_t(s.starts[u]) / Form::kColumns) * kTokens;
    for (int i = 0; i < s.unit; i++) {
      Words values[kVecs];
      ahead.fetch();
      AJOUR_UNROLL for (int v = 0; v < kVecs; v++) values[v] = load(column + v * kLanes);
      AJOUR_UNROLL for (int r = 0; r < kRows; r++) {
        const Words w = broadcast(weights[r]);
        AJOUR_UNROLL for (int v = 0; v < kVecs; v++) sums[r][v] = Form::multiply_add(w, values[v], sums[r][v]);
      }
      column += kTokens;
      weights += s.rows;
    }
  }
  next = ahead;
  AJOUR_UNROLL for (int r = 0; r < kRows; r++) AJOUR_UNROLL for (int v = 0; v < kVecs; v++)
      add_to(out + r * kTokens + v * kLanes, sums[r][v], is_first);
}

// The same for pairs of columns from anywhere; x: halves [columns][tokens] of pack_loose_tokens, an even kVecs.
template <int kRows, int kVecs>
AJOUR_INLINE void segment_of_loose_tokens(const Strip& s, int row, const uint32_t* x, Ahead& next, bool is_first,
                                          float* out) {
  Ahead ahead = next;
  constexpr int kTokens = kVecs * kLanes;
  Vec sums[kRows][kVecs];
  AJOUR_UNROLL for (int r = 0; r < kRows; r++) AJOUR_UNROLL for (int v = 0; v < kVecs; v++) sums[r][v] = zero();
  const uint32_t* weights = s.weights + row;
  for (int64_t u = 0; u < s.units; u += 2) {
    const uint32_t* first = x + int64_t(s.starts[u]) * (kTokens / 2);
    const uint32_t* second = x + int64_t(u + 1 < s.units ? s.starts[u + 1] : s.zero_column) * (kTokens / 2);
    Words values[kVecs];
    ahead.fetch();
    AJOUR_UNROLL for (int v = 0; v < kVecs; v += 2) {
      zip_halves(load(first + v / 2 * kLanes), load(second + v / 2 * kLanes), values[v], values[v + 1]);
    }
    AJOUR_UNROLL for (int r = 0; r < kRows; r++) {
      const Words w = broadcast(weights[r]);
      AJOUR_UNROLL for (int v = 0; v < kVecs; v++) sums[r][v] = dot_pairs(sums[r][v], w, values[v]);
    }
    weights += s.rows;
  }
  next = ahead;
  AJOUR_UNROLL for (int r = 0; r < kRows; r++) AJOUR_UNROLL for (int v = 0; v < kVecs; v++)
      add_to(out + r * kTokens + v * kLanes, sums[r][v], is_first);
}

// All segments of a strip; the totals stand in `out`.
template <class Form, int kRows, int kVecs>
AJOUR_INLINE void tokens_in_lanes(const Strip& s, int row, const uint32_t* x, Ahead& next, float* out) {
  Strip part = s;
  part.units = segment_units(s, Form::kColumns) < s.units ? segment_units(s, Form::kColumns) : s.units;
  do {
    segment_of_tokens<Form, kRows, kVecs>(part, row, x, next, part.starts == s.starts, out);
  } while (next_segment(s, part.units * s.unit, part));
}

template <int kRows, int kVecs>
AJOUR_INLINE void loose_tokens_in_lanes(const Strip& s, int row, const uint32_t* x, Ahead& next, float* out) {
  Strip part = s;
  part.units = kSegment < s.units ? kSegment : s.units;
  do {
    segment_of_loose_tokens<kRows, kVecs>(part, row, x, next, part.starts == s.starts, out);
  } while (next_segment(s, part.units / 2, part));
}

// Writes sums with rows in lanes for `tokens` of kTokens tokens and `count` rows from `row` on.
template <int kVecs, int kTokens, class T>
AJOUR_INLINE void write_rows(const Vec (&sums)[kVecs][kTokens], const Target<T>& to, int64_t token, int tokens,
                             int64_t row, int count) {
  if (to.epilogue.is_simple() && count >= kVecs * kLanes) {
    const Vec floor = to.epilogue.floor();
    Vec bias[kVecs];
    AJOUR_UNROLL for (int v = 0; v < kVecs; v++) bias[v] =
        to.epilogue.bias ? load(to.epilogue.bias + row + v * kLanes) : zero();
    AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
      if (t >= tokens) break;
      AJOUR_UNROLL for (int v = 0; v < kVecs; v++)
          store(to.y + (token + t) * to.n + row + v * kLanes, max(floor, sums[v][t] + bias[v]));
    }
    return;
  }
  float spilled[kTokens][kVecs * kLanes];
  AJOUR_UNROLL for (int t = 0; t < kTokens; t++) AJOUR_UNROLL for (int v = 0; v < kVecs; v++)
      store(&spilled[t][v * kLanes], sums[v][t]);
  for (int t = 0; t < tokens; t++) {
    for (int first = 0; first < kVecs * kLanes && first < count; first += kLanes) {
      to.put(load(&spilled[t][first]), token + t, row + first, count - first < kLanes ? count - first : kLanes);
    }
  }
}

// The same for a square of kLanes rows and tokens with tokens in lanes, at sums[row * width].
template <class T>
__attribute__((noinline)) void write_square(const float* sums, int64_t width, const Target<T>& to, int64_t token,
                                            int tokens, int64_t row, int count) {
  Words square[kLanes];
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++, sums += width) {
    square[i] = as_words(load(sums));
    in_register(square[i]);
  }
  transpose(square);
  if (to.epilogue.is_simple() && count == kLanes && tokens == kLanes) {
    const Vec floor = to.epilogue.floor(), bias = to.epilogue.bias ? load(to.epilogue.bias + row) : zero();
    const int64_t n = to.n;
    T* y = to.y + token * n + row;
    AJOUR_UNROLL for (int i = 0; i < kLanes; i++, y += n) store(y, max(floor, as_floats(square[i]) + bias));
    return;
  }
  float turned[kLanes][kLanes];
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++) store(turned[i], as_floats(square[i]));
  for (int i = 0; i < tokens; i++) to.put(load(turned[i]), token + i, row, count);
}

// The same for sums [rows][width], in squares; `sums` has room for whole ones.
template <class T>
void write_tokens(const float* sums, int width, const Target<T>& to, int64_t token, int tokens, int64_t row, int rows) {
  for (int r = 0; r < rows; r += kLanes) {
    for (int t = 0; t < tokens; t += kLanes) {
      write_square(sums + int64_t(r) * width + t, width, to, token + t, tokens - t < kLanes ? tokens - t : kLanes,
                   row + r, rows - r < kLanes ? rows - r : kLanes);
    }
  }
}

}  // namespace ajour::cpu::AJOUR_ISA
