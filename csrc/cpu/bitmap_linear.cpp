#include "cpu/bitmap_linear.h"

#include "cpu/bitmap_decode.h"
#include "cpu/epilogue.h"
#include "memory/parallel.h"
#include "memory/scratch.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

constexpr int64_t kWork = 1 << 14;   // that is worth a thread, as work_before counts: about 4 us
constexpr int64_t kMostTokens = 64;  // in one sweep over the weight
constexpr int kMostAtOnce = 8;       // rows of x in one pass over a weight row; more of them leave the L1 cache
constexpr int64_t kAhead = 4096;     // bytes that are asked for before they are read: a third faster than without

AJOUR_INLINE int64_t words_of(int64_t k) { return (k + 63) / 64; }

// Of the rows before `row`: their values, and the decoding of their words, which costs as much at any density.
AJOUR_INLINE int64_t work_before(const BitmapLinear& a, int64_t row) {
  return a.starts[row] + row * words_of(a.k) * 16;
}

// The first row with at least `work` before it.
int64_t row_at(const BitmapLinear& a, int64_t work) {
  int64_t low = 0, high = a.n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (work_before(a, middle) < work)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

template <int count>
struct Height {
  static constexpr int value = count;
};

// Rows of x of the type that the products take; each can be read up to a whole word of columns.
template <class X>
struct Rows {
  const X* data;
  int64_t stride, count;
};

// ---- kRows rows of the weight times kTokens rows of x; the lanes of parts[t][r] sum up to their product ----

template <int kRows, int kTokens, bool kFew, class X, class T>
AJOUR_INLINE void multiply_rows(const uint64_t* bits, int64_t words, const T* (&values)[kRows],
                                const X* const (&x)[kTokens], Vec (*parts)[kLanes]) {
#if defined(__AVX2__) || defined(__AVX512F__)
  using Decoder = DecoderOf<X>;
  constexpr int kVectors = Decoder::kVectors, kSets = kRows * kTokens == 1 ? 4 : kRows * kTokens == 2 ? 2 : 1;
  Vec sum[kRows][kTokens][kSets] = {};
  for (int64_t j = 0; j < words; j++) {
    AJOUR_UNROLL for (int half = 0; half < 2; half++) {
      typename Decoder::Decoded decoded[kRows][kVectors];
      AJOUR_UNROLL for (int r = 0; r < kRows; r++) {
        const uint32_t* at = reinterpret_cast<const uint32_t*>(bits + r * words + j) + half;
        __builtin_prefetch(reinterpret_cast<const char*>(values[r]) + kAhead);
        Decoder::template decode<kFew>(at, values[r], decoded[r]);
        values[r] += __builtin_popcount(*at);
      }
      AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
        AJOUR_UNROLL for (int v = 0; v < kVectors; v++) {
          const auto columns = Decoder::load_x(x[t] + 64 * j + 32 * half + v * Decoder::kColumns);
          AJOUR_UNROLL for (int r = 0; r < kRows; r++) {
            Vec& to = sum[r][t][(half * kVectors + v) % kSets];
            to = Decoder::add_products(decoded[r][v], columns, to);
          }
        }
      }
    }
  }
  AJOUR_UNROLL for (int r = 0; r < kRows; r++) {
    AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
      Vec total = sum[r][t][0];
      AJOUR_UNROLL for (int s = 1; s < kSets; s++) total = total + sum[r][t][s];
      parts[t][r] = total;
    }
  }
#else
  for (int r = 0; r < kRows; r++) {
    float sum[kTokens] = {};
    for (int64_t j = 0; j < words; j++) {
      float part[kTokens] = {};  // word by word, to keep rounding errors small
      for (uint64_t left = bits[r * words + j]; left; left &= left - 1) {
        const int64_t column = 64 * j + __builtin_ctzll(left);
        const float weight = to_float(*values[r]++);
        AJOUR_UNROLL for (int t = 0; t < kTokens; t++) part[t] += weight * x[t][column];
      }
      AJOUR_UNROLL for (int t = 0; t < kTokens; t++) sum[t] += part[t];
    }
    AJOUR_UNROLL for (int t = 0; t < kTokens; t++) parts[t][r] = Vec{sum[t]};
  }
#endif
}

// Lane i is the sum of the lanes of rows[i].
AJOUR_INLINE Vec sums(const Vec (&rows)[kLanes]) {
  Words lanes[kLanes];
  AJOUR_UNROLL for (int i = 0; i < kLanes; i++) lanes[i] = as_words(rows[i]);
  transpose(lanes);
  AJOUR_UNROLL for (int step = kLanes / 2; step; step /= 2) AJOUR_UNROLL for (int i = 0; i < step; i++) lanes[i] =
      as_words(as_floats(lanes[i]) + as_floats(lanes[i + step]));
  return as_floats(lanes[0]);
}

// `count` (1..kLanes) neighbouring rows of the weight times up to kTokens rows of x, from `token` of y on.
template <int kTokens, class X, class T>
void multiply_block(const BitmapLinear& a, int64_t row, int count, const Rows<X>& x, int64_t token) {
  constexpr int kRows = kTokens < 4 ? 1 : kTokens == 4 ? 4 : 2;  // they share what is loaded of x
  const int64_t words = words_of(a.k), values = a.starts[row + count] - a.starts[row];
  const bool few = values * 4 < count * a.k;  // then 32 columns seldom have more than 16 values
  const X* rows[kTokens];
  for (int t = 0; t < kTokens; t++) rows[t] = x.data + (t < x.count ? t : x.count - 1) * x.stride;
  Vec parts[kTokens][kLanes] = {};
  const auto multiply = [&](auto height, int i) __attribute__((always_inline)) {
    const T* from[height.value];
    for (int r = 0; r < height.value; r++) from[r] = static_cast<const T*>(a.values) + a.starts[row + i + r];
    const uint64_t* bits = a.bits + (row + i) * words;
    Vec(*to)[kLanes] = reinterpret_cast<Vec(*)[kLanes]>(&parts[0][i]);
    few ? multiply_rows<height.value, kTokens, true>(bits, words, from, rows, to)
        : multiply_rows<height.value, kTokens, false>(bits, words, from, rows, to);
  };
  int i = 0;
  for (; i + kRows <= count; i += kRows) multiply(Height<kRows>(), i);
  for (; i < count; i++) multiply(Height<1>(), i);
  const Epilogue<T> epilogue{static_cast<const T*>(a.bias), static_cast<const T*>(a.residual), a.residual_stride,
                             a.activation};
  for (int t = 0; t < kTokens && t < x.count; t++) {
    T* to = static_cast<T*>(a.y) + (token + t) * a.n + row;
    const Vec done = epilogue.finish(sums(parts[t]), token + t, row, count);
    if (count == kLanes)
      store(to, done);
    else
      store(to, done, count);
  }
}

// All rows of the weight times `x`, whose first row is row `token` of y.
template <class X, class T>
void sweep(const BitmapLinear& a, const Rows<X>& x, int64_t token) {
  parallel_for(0, work_before(a, a.n) + 1, kWork, [&](int64_t first, int64_t last) {
    const int64_t end = row_at(a, last);
    for (int64_t row = row_at(a, first); row < end; row += kLanes) {
      const int count = int(end - row < kLanes ? end - row : kLanes);
      for (int64_t t = 0; t < x.count; t += kMostAtOnce) {
        const Rows<X> rest{x.data + t * x.stride, x.stride, x.count - t};
        if (rest.count == 1)
          multiply_block<1, X, T>(a, row, count, rest, token + t);
        else if (rest.count == 2)
          multiply_block<2, X, T>(a, row, count, rest, token + t);
        else if (rest.count <= 4)
          multiply_block<4, X, T>(a, row, count, rest, token + t);
        else
          multiply_block<kMostAtOnce, X, T>(a, row, count, rest, token + t);
      }
    }
  });
}

// x as floats, each row padded to whole words.
template <class T>
void widen_rows(const T* x, int64_t stride, int64_t k, const Rows<float>& to) {
  for (int64_t t = 0; t < to.count; t++) {
    float* row = const_cast<float*>(to.data) + t * to.stride;
    for (int64_t c = 0; c < to.stride; c += kLanes) {
      const int64_t left = k - c;
      store(row + c, left >= kLanes ? load(x + t * stride + c) : load(x + t * stride + c, left > 0 ? int(left) : 0));
    }
  }
}

template <class T, bool kPairs>
void run(const BitmapLinear& a) {
  for (int64_t token = 0; token < a.m; token += kMostTokens) {
    const T* x = static_cast<const T*>(a.x) + token * a.x_stride;
    const int64_t count = a.m - token < kMostTokens ? a.m - token : kMostTokens;
    if constexpr (kPairs) {  // reads only what has a weight
      sweep<T, T>(a, {x, a.x_stride, count}, token);
    } else {
      Rows<float> rows{reinterpret_cast<const float*>(x), a.x_stride, count};
      if (sizeof(T) != 4 || a.k % 64) {
        rows.stride = words_of(a.k) * 64;
        rows.data = static_cast<float*>(thread_scratch(count * rows.stride * 4));
        if (!rows.data) {
          *a.out_of_memory = true;
          return;
        }
        widen_rows(x, a.x_stride, a.k, rows);
      }
      sweep<float, T>(a, rows, token);
    }
  }
}

}  // namespace

void bitmap_linear(const BitmapLinear& a) {
  switch (a.dtype) {
    case 0:
      return run<float, false>(a);
    case 1:
      return run<BFloat16, kDecodesPairs>(a);
    default:
      return run<Float16, false>(a);
  }
}

}  // namespace ajour::cpu::AJOUR_ISA
