#include "cpu/dense_panels.h"

#include "cpu/simd.h"
#include "memory/parallel.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

constexpr int kParts = 16 / kLanes, kMostTokens = kLanes == 16 ? 8 : kLanes == 8 ? 4 : 2;

AJOUR_INLINE Vec times(float, Words w, uint32_t x, Vec sum) { return fma(as_floats(w), as_floats(broadcast(x)), sum); }
AJOUR_INLINE Vec times(BFloat16, Words w, uint32_t x, Vec sum) { return dot_pairs(sum, w, broadcast(x)); }

// One panel and kTokens rows of x, both in words: a float, or a pair of bfloat16.
template <class T, int kTokens>
void multiply(const uint32_t* weight, const uint32_t* x, int64_t words, T* y, int64_t n) {
  constexpr int kChains = kTokens * kParts >= 8 ? 1 : kTokens * kParts >= 4 ? 2 : 4;
  Vec chains[kChains][kTokens][kParts] = {};
  const auto step = [&](int64_t k, Vec(&sums)[kTokens][kParts]) __attribute__((always_inline)) {
    __builtin_prefetch(weight + k * 16 + 1024);
    AJOUR_UNROLL for (int p = 0; p < kParts; p++) {
      const Words w = load(weight + k * 16 + p * kLanes);
      AJOUR_UNROLL for (int t = 0; t < kTokens; t++) sums[t][p] = times(T{}, w, x[t * words + k], sums[t][p]);
    }
  };
  int64_t k = 0;
  for (; k + kChains <= words; k += kChains) {
    AJOUR_UNROLL for (int c = 0; c < kChains; c++) step(k + c, chains[c]);
  }
  for (; k < words; k++) step(k, chains[0]);
  AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
    AJOUR_UNROLL for (int p = 0; p < kParts; p++) {
      Vec sum = chains[0][t][p];
      AJOUR_UNROLL for (int c = 1; c < kChains; c++) sum = sum + chains[c][t][p];
      store(y + t * n + p * kLanes, sum);
    }
  }
}

template <class T, int kTokens = 1>
void multiply_some(int64_t tokens, const uint32_t* weight, const uint32_t* x, int64_t words, T* y, int64_t n) {
  if constexpr (kTokens < kMostTokens) {
    if (tokens > kTokens) return multiply_some<T, kTokens + 1>(tokens, weight, x, words, y, n);
  }
  multiply<T, kTokens>(weight, x, words, y, n);
}

template <class T>
void run(const DensePanels& a) {
  const int64_t words = a.k * int64_t(sizeof(T)) / 4;
  parallel_for(0, a.n / 16, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
      for (int64_t row = 0; row < a.m; row += kMostTokens) {
        const int64_t tokens = a.m - row < kMostTokens ? a.m - row : kMostTokens;
        multiply_some<T>(tokens, static_cast<const uint32_t*>(a.weight) + panel * words * 16,
                         static_cast<const uint32_t*>(a.x) + row * words, words,
                         static_cast<T*>(a.y) + row * a.n + panel * 16, a.n);
      }
    }
  });
}

}  // namespace

void dense_panels(const DensePanels& a) { a.bfloat16 ? run<BFloat16>(a) : run<float>(a); }

}  // namespace ajour::cpu::AJOUR_ISA
