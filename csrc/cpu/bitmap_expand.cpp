#include "cpu/bitmap_expand.h"

#include "cpu/bitmap_decode.h"
#include "memory/parallel.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

constexpr int64_t kElements = 1 << 15;  // that are worth a thread

// 64 columns from the values at p, one by one.
template <class T>
AJOUR_INLINE void expand_bits(uint64_t word, const T* p, T* out) {
  for (int i = 0; i < 64; i++) out[i] = T{};
  for (; word; word &= word - 1) out[__builtin_ctzll(word)] = *p++;
}

// The same for elements X of a decoder, whose vectors hold them as they are.
template <class X, class T>
AJOUR_INLINE void expand_vectors(const uint64_t* word, const T* p, T* out) {
  using Decoder = DecoderOf<X>;
  AJOUR_UNROLL for (int half = 0; half < 2; half++) {
    const uint32_t* at = reinterpret_cast<const uint32_t*>(word) + half;
    typename Decoder::Decoded decoded[Decoder::kVectors];
    Decoder::template decode<false>(at, reinterpret_cast<const X*>(p), decoded);
    AJOUR_UNROLL for (int v = 0; v < Decoder::kVectors; v++) {
      memcpy(out + 32 * half + v * Decoder::kColumns, &decoded[v].weights, sizeof decoded[v].weights);
    }
    p += __builtin_popcount(*at);
  }
}

AJOUR_INLINE void expand_word(const uint64_t* word, const float* p, float* out) {
#if defined(__AVX2__) || defined(__AVX512F__)
  expand_vectors<float>(word, p, out);
#else
  expand_bits(*word, p, out);
#endif
}

AJOUR_INLINE void expand_word(const uint64_t* word, const BFloat16* p, BFloat16* out) {
#if defined(__AVX512BF16__) && defined(__AVX512BITALG__)
  expand_vectors<BFloat16>(word, p, out);
#else
  expand_bits(*word, p, out);
#endif
}

template <class T>
void run(const BitmapExpand& a) {
  const int64_t words = (a.k + 63) / 64, grain = kElements / (a.k + 1) + 1;
  parallel_for(a.first, a.last, grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      const T* values = static_cast<const T*>(a.values) + a.starts[row];
      T* out = static_cast<T*>(a.dense) + (row - a.first) * a.k;
      for (int64_t j = 0; j < words; j++) {
        const uint64_t* word = a.bits + row * words + j;
        __builtin_prefetch(reinterpret_cast<const char*>(values) + 2048);
        const int64_t left = a.k - 64 * j;
        if (left >= 64) {
          expand_word(word, values, out + 64 * j);
        } else {
          T part[64];
          expand_word(word, values, part);
          memcpy(out + 64 * j, part, size_t(left) * sizeof(T));
        }
        values += __builtin_popcountll(*word);
      }
    }
  });
}

}  // namespace

void bitmap_expand(const BitmapExpand& a) { a.itemsize == 4 ? run<float>(a) : run<BFloat16>(a); }

}  // namespace ajour::cpu::AJOUR_ISA
