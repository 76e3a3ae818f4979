// Every token's x is first laid out as tables, one for each window of columns; then each panel of 16 weight rows is
// multiplied with tiles of up to kMostTokens tokens. A slot costs one load of 16 values, the decoding of their codes
// and, for each token, one permute of its table and one fused multiply-add: the two share three ports on Zen 5, which
// bounds a 2:4 product at 1.33x the dense peak in float32. (Broadcasting four columns from memory would be a second
// permute there.)
#include "cpu/nm_linear.h"

#include "cpu/epilogue.h"
#include "cpu/nm_forms.h"
#include "memory/parallel.h"
#include "memory/scratch.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kMostTokens = 16;
#elif defined(__AVX2__) || defined(__ARM_NEON)
constexpr int kMostTokens = 4;
#else
constexpr int kMostTokens = 2;
#endif
constexpr int64_t kBlockBytes = 384 << 10;  // of tables: with a panel of weights they stay in a 1 MiB L2
constexpr int64_t kGrain = 1 << 14;         // slots times tokens that are worth a thread
// Products of an output that registers sum up before they join its total. One chain of additions over all of k had 7
// times the error (2:4 in float32, k = 4096, 256 rows, columns of x with outliers); the segments cost 1 to 2 % (Zen 5).
constexpr int kSegment = 96;

// A panel as a form walks it: `count` windows (pairs of windows for Dot) of `units` slots (pairs of slots).
struct Windows {
  int64_t count, segment;  // `segment` of them hold up to kSegment products of an output
  int units;
  uint32_t bases[32];
};

// The tile sizes that exist: 1 to 8, and even ones above.
constexpr int size_of_tile(int64_t tokens) { return int(tokens <= 8 ? tokens : (tokens + 1) / 2 * 2); }

// The next tile of `left` tokens: full ones first, the last two alike.
int64_t next_tile(int64_t left) {
  if (left <= kMostTokens) return left;
  return left >= 2 * kMostTokens ? kMostTokens : (left + 1) / 2;
}

template <class Form>
Windows windows_of(const NMPanels& p) {
  constexpr bool paired = Form::kUnit == 32;
  Windows w{};
  const int units = paired ? p.slots / 2 : p.slots;
  w.count = p.windows / Form::kWindows;
  w.units = units * Form::kWindows;
  const int products = p.slots * Form::kWindows;
  w.segment = products < kSegment ? kSegment / products : 1;
  for (int u = 0; u < w.units; u++) {
    const int s = u % units;
    const uint32_t beyond = u < units ? 0 : 16;  // the second window's columns
    w.bases[u] = paired ? (uint32_t(p.base[2 * s]) + beyond) | (uint32_t(p.base[2 * s + 1]) + beyond) << 16
                        : uint32_t(p.base[s]);
  }
  return w;
}

// sums: [kTokens][16] = tables times one panel. Few tokens take several chains of sums to hide the latency of an FMA.
template <class Form, int kTokens>
void multiply(const Windows& w, const typename Form::Value* values, const uint8_t* codes,
              const typename Form::X* tables, float* sums) {
  constexpr int kChains = kTokens * kParts >= 8 ? 1 : kTokens * kParts >= 4 ? 2 : 4;
  constexpr int kCodes = Form::kUnit * Form::kBits / 8, kAhead = 6144 / int(sizeof *values), kCodesAhead = 768;
  // loops over pointers: with counters, gcc 12 keeps one of the inner loop's in memory, which costs 3 % (Zen 5)
  memset(sums, 0, kTokens * kPanelRows * sizeof *sums);
  const typename Form::X* const end = tables + w.count * kTokens * Form::kColumns;
  while (tables != end) {
    const int64_t left = end - tables, most = w.segment * kTokens * Form::kColumns;
    const typename Form::X* const stop = tables + (left < most ? left : most);
    Vec chains[kChains][kTokens][kParts] = {};
    for (; tables != stop; tables += kTokens * Form::kColumns) {
      __builtin_prefetch(codes + kCodesAhead);
      int u = 0;
      for (; u + kChains <= w.units; u += kChains) {
        AJOUR_UNROLL for (int c = 0; c < kChains; c++) {
          __builtin_prefetch(values + kAhead + c * Form::kUnit);
          Form::template accumulate<kTokens>(chains[c], values + c * Form::kUnit, codes + c * kCodes, w.bases[u + c],
                                             tables);
        }
        values += kChains * Form::kUnit;
        codes += kChains * kCodes;
      }
      for (; u < w.units; u++, values += Form::kUnit, codes += kCodes) {
        Form::template accumulate<kTokens>(chains[0], values, codes, w.bases[u], tables);
      }
    }
    AJOUR_UNROLL for (int t = 0; t < kTokens; t++) {
      AJOUR_UNROLL for (int p = 0; p < kParts; p++) {
        float* const total = sums + t * kPanelRows + p * kLanes;
        Vec sum = chains[0][t][p];
        AJOUR_UNROLL for (int c = 1; c < kChains; c++) sum = sum + chains[c][t][p];
        store(total, load(total) + sum);
      }
    }
  }
}

template <class Form>
using Multiply = void (*)(const Windows&, const typename Form::Value*, const uint8_t*, const typename Form::X*, float*);

template <class Form, int kTokens = 1>
Multiply<Form> multiply_for(int tokens) {
  if constexpr (kTokens < kMostTokens) {
    if (tokens > kTokens) return multiply_for<Form, size_of_tile(kTokens + 1)>(tokens);
  }
  return multiply<Form, kTokens>;
}

AJOUR_INLINE void copy_lanes(const float* from, float* to, int count) { store(to, load(from, count)); }
AJOUR_INLINE void copy_lanes(const BFloat16* from, float* to, int count) { store(to, load(from, count)); }
AJOUR_INLINE void copy_lanes(const Float16* from, float* to, int count) { store(to, load(from, count)); }
AJOUR_INLINE void copy_lanes(const BFloat16* from, BFloat16* to, int count) {
  store_halves(to, load_halves(from, count));
}

// tables: [windows][size][columns], zero where a window or a row of x ends; the last row fills the tile.
template <class T, class X>
void lay_tables(const T* x, int64_t stride, int64_t tokens, int size, int64_t k, int window, int columns, int64_t count,
                X* tables) {
  for (int t = 0; t < size; t++) {
    const T* row = x + (t < tokens ? t : tokens - 1) * stride;
    X* table = tables + t * columns;
    for (int64_t i = 0; i < count; i++, table += size * columns) {
      const int64_t inside = k - i * window < window ? k - i * window : window;
      for (int c = 0; c < columns; c += kLanes) {
        const int64_t lanes = inside - c < 0 ? 0 : inside - c < kLanes ? inside - c : kLanes;
        copy_lanes(row + i * window + c, table + c, int(lanes));
      }
    }
  }
}

// y[row + t][column ...] from sums: [tokens][16].
template <class T>
void finish(const NMLinear& a, const Epilogue<T>& epilogue, const float* sums, int64_t tokens, int64_t row,
            int64_t column) {
  T* y = static_cast<T*>(a.y) + row * a.layout.n + column;
  const float* more = a.sums ? a.sums + row * a.layout.n + column : nullptr;
  for (int64_t t = 0; t < tokens; t++, y += a.layout.n, sums += kPanelRows) {
    for (int p = 0; p < kParts; p++) {
      const int64_t left = a.layout.n - column - p * kLanes;
      if (left <= 0) break;
      const int count = left < kLanes ? int(left) : kLanes;
      Vec sum = load(sums + p * kLanes);
      if (more) sum = sum + load(more + t * a.layout.n + p * kLanes, count);
      const Vec v = epilogue.finish(sum, row + t, column + p * kLanes, count);
      if (count == kLanes)
        store(y + p * kLanes, v);
      else
        store(y + p * kLanes, v, count);
    }
  }
}

template <class Form, class T>
void run(const NMLinear& a) {
  using X = typename Form::X;
  using Value = typename Form::Value;
  const NMPanels& p = a.layout;
  const Windows w = windows_of<Form>(p);
  const int window = p.window * Form::kWindows;
  const int64_t per_token = w.count * Form::kColumns, held = p.windows * p.slots * kPanelRows;
  const int64_t fitting = kBlockBytes / (per_token * int64_t(sizeof(X))) / kMostTokens;
  const int64_t tiles = (a.m + kMostTokens - 1) / kMostTokens, most = fitting < 1 ? 1 : fitting;
  const int64_t alike = (tiles + most - 1) / most;  // blocks of the same size, as each is one share of the work
  const int64_t block = (tiles + alike - 1) / alike * kMostTokens, blocks = (a.m + block - 1) / block;
  const Epilogue<T> epilogue{static_cast<const T*>(a.bias), static_cast<const T*>(a.residual), p.n, a.activation};
  const int64_t tokens_at_once = a.m < block ? a.m : block, work = held / kPanelRows * tokens_at_once;
  bool starved = false;
  parallel_for(0, blocks * p.panels, 1 + kGrain / (work + 1), [&](int64_t begin, int64_t end) {
    X* const tables = static_cast<X*>(thread_scratch((tokens_at_once + 2) * per_token * int64_t(sizeof(X)) + 64));
    if (!tables) return __atomic_store_n(&starved, true, __ATOMIC_RELAXED);
    alignas(64) float sums[kMostTokens * kPanelRows];
    for (int64_t i = begin; i < end; i++) {
      const int64_t panel = i % p.panels, first = i / p.panels * block,
                    last = first + block < a.m ? first + block : a.m;
      const Value* values = static_cast<const Value*>(a.values) + panel * held;
      const uint8_t* codes = a.codes + panel * held * Form::kBits / 8;
      X* at = tables;
      for (int64_t row = first, tokens; row < last; row += tokens) {
        tokens = next_tile(last - row);
        const int size = size_of_tile(tokens);
        if (i == begin || panel == 0) {
          lay_tables(static_cast<const T*>(a.x) + row * a.x_stride, a.x_stride, tokens, size, p.k, window,
                     Form::kColumns, w.count, at);
        }
        multiply_for<Form>(size)(w, values, codes, at, sums);
        finish(a, epilogue, sums, tokens, row, panel * kPanelRows);
        at += size * per_token;
      }
    }
  });
  if (starved) refuse_memory();
}

template <class T>
void run_single(const NMLinear& a) {
  switch (a.layout.bits) {
    case 2:
      return run<Single<T, 2>, T>(a);
    case 4:
      return run<Single<T, 4>, T>(a);
    default:
      return run<Single<T, 8>, T>(a);
  }
}

void run_paired(const NMLinear& a) {
#if defined(__AVX512BF16__)
  return a.layout.bits == 2 ? run<Dot<2>, BFloat16>(a) : run<Dot<4>, BFloat16>(a);
#else
  return a.layout.bits == 2 ? run<Paired<2>, BFloat16>(a) : run<Paired<4>, BFloat16>(a);
#endif
}

}  // namespace

void nm_linear(const NMLinear& a) {
  if (a.layout.paired) return run_paired(a);
  switch (a.type) {
    case kFloat32:
      return run_single<float>(a);
    case kBFloat16:
      return run_single<BFloat16>(a);
    default:
      return run_single<Float16>(a);
  }
}

}  // namespace ajour::cpu::AJOUR_ISA
