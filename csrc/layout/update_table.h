// What an optimizer's kernels read of each parameter: rows of 64-bit words that the host fills and any device reads.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define AJOUR_HOST_DEVICE __host__ __device__
#else
#define AJOUR_HOST_DEVICE
#endif

namespace ajour {

constexpr int64_t kUpdateChunk = 4096;  // entries that are one piece of work; compact states know where each begins
constexpr int kUpdateStates = 3;
constexpr int kCoefficients = 9;  // floats for each parameter

// One parameter of an update; all memory is contiguous.
//   weight, grad: `numel` numbers of the launch's type.
//   bits:    bit i % 8 of byte i / 8 is 1 where entry i is kept; null keeps all.
//   offsets: null if states and master have an entry for every entry of the weight; else they have one for each kept
//            entry, and offsets[c] of those come before entry c * kUpdateChunk.
//   master:  null, or the weight in float32.
//   seed:    of this parameter's stochastic rounding.
struct UpdateRow {
  void* weight;
  void* grad;
  const uint8_t* bits;
  const int64_t* offsets;
  float* master;
  float* states[kUpdateStates];
  int64_t numel;
  int64_t seed;
  int64_t first_chunk;  // how many chunks the rows before this one have
};
static_assert(sizeof(UpdateRow) == 11 * sizeof(int64_t), "the host fills 11 words for a row");

// Coefficients of a row, computed by the optimizer in float64 and rounded once.
struct AdamWCoefficients {
  float sign;           // -1 to maximize
  float decay;          // 1 - lr * weight_decay
  float blend1;         // 1 - beta1
  float beta2, blend2;  // blend2 = 1 - beta2
  float correction2;    // 1 / sqrt(1 - beta2^step)
  float eps;
  float rate;  // lr / (1 - beta1^step)
  float step;
};
struct SgdCoefficients {
  float sign;
  float decay;  // weight_decay, added to the gradient
  float momentum;
  float gain;      // 1 - dampening; 1 in the first step
  float nesterov;  // 0 or 1
  float unused[2];
  float rate;  // lr
  float step;
};

// A bijection of 32-bit words in which each input bit changes about half of the output bits (the constants of Chris
// Wellons' "lowbias32", found by search).
AJOUR_HOST_DEVICE constexpr uint32_t scramble(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The random word of entry i in this step is scramble(low half of i ^ rounding_key(...)): a counter, no state.
AJOUR_HOST_DEVICE constexpr uint32_t rounding_key(int64_t seed, uint32_t step, int64_t i) {
  return scramble(scramble(uint32_t(seed) ^ step * 0x9e3779b9u) + uint32_t(uint64_t(i) >> 32));
}

}  // namespace ajour
