#include "cpu/masked_update.h"

#include "cpu/masked_lanes.h"
#include "cpu/update_chunks.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

// Decoupled weight decay, Loshchilov and Hutter 2019 (arXiv 1711.05101), in the form and order of torch.optim.AdamW.
template <bool Amsgrad>
struct AdamW {
  static constexpr int kStates = Amsgrad ? 3 : 2;
  AdamWCoefficients c;

  AJOUR_INLINE_MEMBER Vec step(Vec w, Vec g, Vec* s) const {
    s[0] = fma(g - s[0], broadcast(c.blend1), s[0]);
    s[1] = fma(g * broadcast(c.blend2), g, s[1] * broadcast(c.beta2));
    Vec second = s[1];
    if constexpr (Amsgrad) second = s[2] = (s[1] > s[2]) | (s[1] != s[1]) ? s[1] : s[2];
    const Vec denominator = fma(sqrt(second), broadcast(c.correction2), broadcast(c.eps));
    return fma(s[0] / denominator, broadcast(-c.rate), w * broadcast(c.decay));
  }
};

template <bool Momentum>
struct Sgd {
  static constexpr int kStates = Momentum ? 1 : 0;
  SgdCoefficients c;

  AJOUR_INLINE_MEMBER Vec step(Vec w, Vec g, Vec* s) const {
    g = fma(w, broadcast(c.decay), g);
    if constexpr (Momentum) {
      s[0] = fma(g, broadcast(c.gain), s[0] * broadcast(c.momentum));
      g = c.nesterov != 0 ? fma(s[0], broadcast(c.momentum), g) : s[0];
    }
    return fma(g, broadcast(-c.rate), w);
  }
};

// To bfloat16 up or down at random, so that the mean is v: the upper half of v plus a 16-bit random number.
AJOUR_INLINE Vec round_at_random(Vec v, uint32_t key, int64_t i) {
  Words x;
  AJOUR_UNROLL for (int lane = 0; lane < kLanes; lane++) x[lane] = uint32_t(lane);
  x = (x + uint32_t(i)) ^ key;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  x = x ^ (x >> 16);
  const Words bits = as_words(v), rounded = (bits + (x & 0xffffu)) & 0xffff0000u;
  return as_floats((bits & 0x7f800000u) == 0x7f800000u ? bits : rounded);
}

template <class T>
AJOUR_INLINE Vec load_some(const T* p, int count) {
  return count == kLanes ? load(p) : load(p, count);
}
template <class T>
AJOUR_INLINE void store_some(T* p, Vec v, int count) {
  count == kLanes ? store(p, v) : store(p, v, count);
}

// What a launch has in common for one row. Loops take a copy, as whatever lies in memory they would read again after
// every store.
template <class Rule>
struct Row {
  UpdateRow row;
  Rule rule;
  float factor;   // of the gradient
  uint32_t step;  // of the random numbers
  bool stochastic;
};

constexpr int kWord = 64;  // entries whose bits are looked at together

// Writes +0.0 to up to 64 weights where it isn't there already: they seldom change, and a write costs bandwidth.
template <class T>
AJOUR_INLINE void hold_at_zero(T* w, int64_t left) {
  if (left < kWord) return void(memset(w, 0, size_t(left) * sizeof(T)));
  constexpr int kVectors = kWord * sizeof(T) / sizeof(Words);
  Words any{};
  AJOUR_UNROLL for (int i = 0; i < kVectors; i++) any |= load(reinterpret_cast<const uint32_t*>(w) + i * kLanes);
  if (any_bit(any)) memset(w, 0, kWord * sizeof(T));
}

// Stores lanes of new weights of type T; i is the place of the first one in its parameter.
template <class T, class Rule>
AJOUR_INLINE void store_weights(const Row<Rule>& r, int64_t i, Vec w, int count) {
  if constexpr (sizeof(T) == 2) {
    if (r.stochastic) w = round_at_random(w, rounding_key(r.row.seed, r.step, i), i);
  }
  store_some(static_cast<T*>(r.row.weight) + i, w, count);
}

constexpr int kAhead = 16 * kWord;  // entries

template <class T>
AJOUR_INLINE void prefetch_grads(const UpdateRow& row, int64_t i) {
  AJOUR_UNROLL for (int line = 0; line < kWord; line += 64 / sizeof(T)) {
    __builtin_prefetch(static_cast<const T*>(row.grad) + i + line);
  }
}

// Asks for the states and gradients of 64 entries: where whole words are skipped, the processor doesn't foresee which.
template <class T, class Rule>
AJOUR_INLINE void prefetch_word(const UpdateRow& row, int64_t i) {
  AJOUR_UNROLL for (int line = 0; line < kWord; line += 16) {
    AJOUR_UNROLL for (int j = 0; j < Rule::kStates; j++) __builtin_prefetch(row.states[j] + i + line, 1);
  }
  prefetch_grads<T>(row, i);
}

// Entries begin to begin + entries of a parameter whose states have an entry for each of the weight's.
template <class T, class Rule, bool Master>
void update_dense(const Row<Rule>& given, int64_t begin, int64_t entries) {
  const Row<Rule> r = given;
  const int64_t end = begin + entries;
  uint64_t before = ~uint64_t(0);  // where no word is skipped, the processor fetches better by itself
  for (int64_t i = begin; i < end; i += kWord) {
    const int64_t left = end - i;
    uint64_t word = left < kWord ? (uint64_t(1) << left) - 1 : ~uint64_t(0);
    if (r.row.bits) {
      word = mask_word(r.row.bits, i, left);
      const uint64_t ahead = left >= kAhead + kWord ? mask_word(r.row.bits, i + kAhead, kWord) : 0;
      if (ahead && !before) prefetch_word<T, Rule>(r.row, i + kAhead);
      before = ahead;
    }
    T* const weight = static_cast<T*>(r.row.weight);
    if (!word) {
      hold_at_zero(weight + i, left);
      continue;
    }
    AJOUR_UNROLL for (int lane = 0; lane < kWord; lane += kLanes) {
      if (left <= lane) break;
      const int64_t at = i + lane;
      const int count = left < lane + kLanes ? int(left) - lane : kLanes;
      const uint32_t mask = uint32_t(word >> lane) & kAllLanes;
      Vec s[Rule::kStates + 1];
      AJOUR_UNROLL for (int j = 0; j < Rule::kStates; j++) s[j] = load_some(r.row.states[j] + at, count);
      const Vec g = load_some(static_cast<const T*>(r.row.grad) + at, count) * broadcast(r.factor);
      Vec w = Master ? load_some(r.row.master + at, count) : load_some(weight + at, count);
      w = select(r.rule.step(w, g, s), mask);
      AJOUR_UNROLL for (int j = 0; j < Rule::kStates; j++) store_some(r.row.states[j] + at, select(s[j], mask), count);
      if constexpr (Master) store_some(r.row.master + at, w, count);
      store_weights<T>(r, at, w, count);
    }
  }
}

constexpr int kStretch = 1024;  // entries whose kept ones are collected at a time: 8 KiB, well inside the L1 cache

// Collects kept weights and gradients of up to 64 entries; returns how many these are.
template <class T, bool Master>
AJOUR_INLINE int collect_word(const UpdateRow& row, int64_t i, int64_t left, uint64_t word, float* weights,
                              float* grads) {
  T* const weight = static_cast<T*>(row.weight) + i;
  const T* const grad = static_cast<const T*>(row.grad) + i;
  int kept = 0;
  AJOUR_UNROLL for (int lane = 0; lane < kWord; lane += kLanes) {
    if (left < lane + kLanes && left <= lane) break;
    const int count = left < lane + kLanes ? int(left) - lane : kLanes;
    const uint32_t mask = uint32_t(word >> lane) & kAllLanes;
    compress(grads + kept, load_some(grad + lane, count), mask);
    if constexpr (!Master) compress(weights + kept, load_some(weight + lane, count), mask);
    kept += __builtin_popcount(mask);
  }
  return kept;
}

// Writes up to 64 weights: those that `values` has for kept entries, +0.0 elsewhere. Returns how many were kept.
template <class T, class Rule>
AJOUR_INLINE int spread_word(const Row<Rule>& r, int64_t i, int64_t left, uint64_t word, const float* values) {
  int kept = 0;
  AJOUR_UNROLL for (int lane = 0; lane < kWord; lane += kLanes) {
    if (left < lane + kLanes && left <= lane) break;
    const uint32_t mask = uint32_t(word >> lane) & kAllLanes;
    const int count = left < lane + kLanes ? int(left) - lane : kLanes;
    store_weights<T>(r, i + lane, decompress(values + kept, mask), count);
    kept += __builtin_popcount(mask);
  }
  return kept;
}

// One step for `kept` entries whose states, and master if there is one, lie at place `at`; weights become the new ones.
template <class Rule, bool Master>
AJOUR_INLINE void update_kept(const Row<Rule>& r, int64_t at, int kept, const float* grads, float* weights) {
  const UpdateRow& row = r.row;
  for (int j = 0; j < kept; j += kLanes) {
    const int count = kept - j < kLanes ? kept - j : kLanes;
    Vec s[Rule::kStates + 1];
    AJOUR_UNROLL for (int k = 0; k < Rule::kStates; k++) s[k] = load_some(row.states[k] + at + j, count);
    Vec w = Master ? load_some(row.master + at + j, count) : load(weights + j);
    w = r.rule.step(w, load(grads + j) * broadcast(r.factor), s);
    AJOUR_UNROLL for (int k = 0; k < Rule::kStates; k++) store_some(row.states[k] + at + j, s[k], count);
    if constexpr (Master) store_some(row.master + at + j, w, count);
    store(weights + j, w);
  }
}

// The same where states and master hold kept entries alone, from place `at`; returns the place after the last one.
template <class T, class Rule, bool Master>
int64_t update_compact(const Row<Rule>& given, int64_t begin, int64_t entries, int64_t at) {
  const Row<Rule> r = given;
  float weights[kStretch + kLanes], grads[kStretch + kLanes];
  uint64_t words[kStretch / kWord], before = ~uint64_t(0);
  int kept = 0;
  for (int64_t i = 0; i < entries; i += kWord) {
    const int64_t left = entries - i;
    const uint64_t word = words[i / kWord] = mask_word(r.row.bits, begin + i, left);
    const int64_t next = begin + i + kAhead;
    const uint64_t ahead = next + kWord <= r.row.numel ? mask_word(r.row.bits, next, kWord) : 0;
    if (ahead && !before) prefetch_grads<T>(r.row, next);
    before = ahead;
    if (word) {
      kept += collect_word<T, Master>(r.row, begin + i, left, word, weights + kept, grads + kept);
    } else {
      hold_at_zero(static_cast<T*>(r.row.weight) + begin + i, left);
    }
  }
  update_kept<Rule, Master>(r, at, kept, grads, weights);
  const float* values = weights;
  for (int64_t i = 0; i < entries; i += kWord) {
    const uint64_t word = words[i / kWord];
    if (word) values += spread_word<T>(r, begin + i, entries - i, word, values);
  }
  return at + kept;
}

template <class T, class Rule, bool Master>
void update_chunk(const Row<Rule>& r, int64_t begin, int64_t entries) {
  if (!r.row.offsets) return update_dense<T, Rule, Master>(r, begin, entries);
  int64_t at = r.row.offsets[begin / kUpdateChunk];
  for (int64_t i = 0; i < entries; i += kStretch) {
    at = update_compact<T, Rule, Master>(r, begin + i, entries - i < kStretch ? entries - i : kStretch, at);
  }
}

template <class T, class Rule, class Coefficients>
void run(const MaskedUpdate& a) {
  for_chunks(a.rows, a.count, [&](int64_t which, int64_t begin, int64_t entries, int64_t) {
    const auto& c = reinterpret_cast<const Coefficients*>(a.coefficients)[which];
    const Row<Rule> r{a.rows[which], Rule{c}, c.sign / a.grad_scale, uint32_t(c.step), a.stochastic};
    a.master ? update_chunk<T, Rule, true>(r, begin, entries) : update_chunk<T, Rule, false>(r, begin, entries);
  });
}

template <class T>
void by_rule(const MaskedUpdate& a) {
  switch (a.rule) {
    case UpdateRule::adamw:
      return run<T, AdamW<false>, AdamWCoefficients>(a);
    case UpdateRule::amsgrad:
      return run<T, AdamW<true>, AdamWCoefficients>(a);
    case UpdateRule::sgd:
      return run<T, Sgd<false>, SgdCoefficients>(a);
    case UpdateRule::momentum:
      return run<T, Sgd<true>, SgdCoefficients>(a);
  }
}

}  // namespace

void masked_update(const MaskedUpdate& a) {
  a.type == 0 ? by_rule<float>(a) : a.type == 1 ? by_rule<BFloat16>(a) : by_rule<Float16>(a);
}

}  // namespace ajour::cpu::AJOUR_ISA
