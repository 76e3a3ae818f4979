#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "cuda/masked_update.h"
#include "memory/check.h"

namespace ajour::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kPerWarp = kUpdateChunk / kWarps;  // entries of a chunk that are one warp's
constexpr int kWords = kPerWarp / 32;            // and their words of bits: one for each lane
static_assert(kWords == 32, "each lane holds one word of bits");
constexpr int kTogether = 4;  // words whose loads are in flight at once
constexpr unsigned kFull = 0xffffffffu;

template <bool Amsgrad>
struct AdamW {
  using Coefficients = AdamWCoefficients;
  static constexpr int kStates = Amsgrad ? 3 : 2;

  static __device__ __forceinline__ float step(const Coefficients& c, float w, float g, float* s) {
    s[0] = fmaf(g - s[0], c.blend1, s[0]);
    s[1] = fmaf(g * c.blend2, g, s[1] * c.beta2);
    float second = s[1];
    if constexpr (Amsgrad) second = s[2] = s[1] > s[2] || s[1] != s[1] ? s[1] : s[2];
    return fmaf(__fdiv_rn(s[0], fmaf(__fsqrt_rn(second), c.correction2, c.eps)), -c.rate, w * c.decay);
  }
};

template <bool Momentum>
struct Sgd {
  using Coefficients = SgdCoefficients;
  static constexpr int kStates = Momentum ? 1 : 0;

  static __device__ __forceinline__ float step(const Coefficients& c, float w, float g, float* s) {
    g = fmaf(w, c.decay, g);
    if constexpr (Momentum) {
      s[0] = fmaf(g, c.gain, s[0] * c.momentum);
      g = c.nesterov != 0 ? fmaf(s[0], c.momentum, g) : s[0];
    }
    return fmaf(g, -c.rate, w);
  }
};

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ void narrow(float v, float& to) { to = v; }
__device__ __forceinline__ void narrow(float v, __nv_bfloat16& to) { to = __float2bfloat16_rn(v); }
__device__ __forceinline__ void narrow(float v, __half& to) { to = __float2half_rn(v); }

// To a float that is a bfloat16, up or down at random (cpu/masked_update.cpp has the same bits).
__device__ __forceinline__ float round_at_random(float v, uint32_t random) {
  const uint32_t bits = __float_as_uint(v);
  if ((bits & 0x7f800000u) == 0x7f800000u) return v;
  return __uint_as_float((bits + (random & 0xffffu)) & 0xffff0000u);
}

// How many bits are set from bit 0 to `count` of the words at `bits`, summed over the warp.
__device__ __forceinline__ int count_before(const uint32_t* words, int count, int lane) {
  int sum = 0;
  for (int i = lane; i < count; i += 32) sum += __popc(words[i]);
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(kFull, sum, step);
  return sum;
}

// The bits of entries 32 * word to 32 * word + 31; reads no byte beyond the last one.
__device__ __forceinline__ uint32_t load_word(const uint8_t* bits, int64_t word, int64_t numel) {
  const int64_t left = numel - 32 * word;
  if (left <= 0) return 0;
  if (left >= 32) return reinterpret_cast<const uint32_t*>(bits)[word];
  uint32_t value = 0;
  for (int byte = 0; 8 * byte < left; byte++) value |= uint32_t(bits[4 * word + byte]) << 8 * byte;
  return value;
}

// A block updates one chunk of one parameter, a warp a quarter of it: 32 neighbouring entries at a time, so that loads
// and stores of the kept ones are neighbours too, in compact states as well.
template <class T, class Rule, bool Master>
__global__ void __launch_bounds__(kWarps * 32)
    update(const UpdateRow* rows, const int32_t* chunk_rows, const float* coefficients, bool stochastic,
           const float* grad_scale, const float* found_inf) {
  if (found_inf && *found_inf != 0) return;
  const int64_t which = chunk_rows[blockIdx.x];
  const UpdateRow row = rows[which];
  const auto c = reinterpret_cast<const typename Rule::Coefficients*>(coefficients)[which];
  const float factor = grad_scale ? __fdiv_rn(c.sign, *grad_scale) : c.sign;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t chunk = blockIdx.x - row.first_chunk, begin = chunk * kUpdateChunk + warp * kPerWarp;
  if (begin >= row.numel) return;
  T* const weight = static_cast<T*>(row.weight);
  const T* const grad = static_cast<const T*>(row.grad);
  const bool compact = row.offsets != nullptr;
  const uint32_t key = rounding_key(row.seed, uint32_t(c.step), begin);

  uint32_t mine = kFull;  // bits of entries begin + 32 * lane and on
  if (row.bits) {
    mine = load_word(row.bits, begin / 32 + lane, row.numel);
  } else if (const int64_t left = row.numel - begin - 32 * lane; left < 32) {
    mine = left <= 0 ? 0 : (1u << left) - 1;
  }
  int64_t at = begin;
  int before = 0;  // kept entries of this warp before those of `mine`
  if (compact) {
    const auto* words = reinterpret_cast<const uint32_t*>(row.bits) + chunk * (kUpdateChunk / 32);
    at = row.offsets[chunk] + count_before(words, warp * kWords, lane);
    const int own = __popc(mine);
    before = own;
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kFull, before, step);
      before += lane >= step ? other : 0;
    }
    before -= own;
  }

  for (int first = 0; first < kWords; first += kTogether) {
    float w[kTogether], g[kTogether], s[kTogether][Rule::kStates + 1];
    int64_t place[kTogether];
    bool kept[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; j++) {
      const uint32_t word = __shfl_sync(kFull, mine, first + j);
      const int rank = __shfl_sync(kFull, before, first + j);
      const int64_t i = begin + 32 * (first + j) + lane;
      kept[j] = word >> lane & 1;
      place[j] = compact ? at + rank + __popc(word & ((1u << lane) - 1)) : i;
      w[j] = g[j] = 0;
#pragma unroll
      for (int k = 0; k < Rule::kStates; k++) s[j][k] = kept[j] ? row.states[k][place[j]] : 0;
      if (kept[j]) {
        g[j] = widen(grad[i]) * factor;
        w[j] = Master ? row.master[place[j]] : widen(weight[i]);
      }
    }
#pragma unroll
    for (int j = 0; j < kTogether; j++) {
      const int64_t i = begin + 32 * (first + j) + lane;
      if (i >= row.numel) continue;
      float updated = 0;
      if (kept[j]) {
        updated = Rule::step(c, w[j], g[j], s[j]);
#pragma unroll
        for (int k = 0; k < Rule::kStates; k++) row.states[k][place[j]] = s[j][k];
        if constexpr (Master) row.master[place[j]] = updated;
        if (stochastic) updated = round_at_random(updated, scramble(uint32_t(i) ^ key));
      }
      narrow(updated, weight[i]);
    }
  }
}

template <class T, class Rule>
void launch(const MaskedUpdate& a) {
  const auto kernel = a.master ? update<T, Rule, true> : update<T, Rule, false>;
  kernel<<<unsigned(a.chunks), kWarps * 32, 0, static_cast<cudaStream_t>(a.stream)>>>(
      a.rows, a.chunk_rows, a.coefficients, a.stochastic, a.grad_scale, a.found_inf);
}

template <class T>
void by_rule(const MaskedUpdate& a) {
  switch (a.rule) {
    case 0:
      return launch<T, AdamW<false>>(a);
    case 1:
      return launch<T, AdamW<true>>(a);
    case 2:
      return launch<T, Sgd<false>>(a);
    default:
      return launch<T, Sgd<true>>(a);
  }
}

}  // namespace

void masked_update(const MaskedUpdate& a) {
  if (!a.chunks) return;
  a.type == 0 ? by_rule<float>(a) : a.type == 1 ? by_rule<__nv_bfloat16>(a) : by_rule<__half>(a);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) refuse<KernelError>("masked_update was not launched: ", cudaGetErrorString(error));
}

}  // namespace ajour::cuda
