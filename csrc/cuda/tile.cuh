// The vocabulary of a decode kernel: sums as the tensor cores leave them, and how a result is finished.
#pragma once
#include "cuda/decode.h"
#include "cuda/ptx.cuh"

namespace ajour::cuda {

// The sums of one warp: 64 rows of the weight by TOKENS rows of x, as `mma` leaves them. Element e of [fragment][token
// tile] is row 16 * fragment + lane / 4 + 8 * (e / 2) and token 8 * tile + 2 * (lane % 4) + e % 2.
template <int TOKENS>
struct Sums {
  static constexpr int kTiles = TOKENS / 8;
  float value[kFragments][kTiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) value[f][t][e] = 0.0f;
      }
    }
  }

  // Sums travel between warps and blocks in their own order: [fragment][tile][32 lanes] of 16 bytes.
  __device__ __forceinline__ void store(float* at, int lane) const {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const float* v = value[f][t];
        reinterpret_cast<float4*>(at)[(f * kTiles + t) * kWarp + lane] = make_float4(v[0], v[1], v[2], v[3]);
      }
    }
  }

  // `Read` loads a float4 from where another warp or another block stored it.
  template <class Read>
  __device__ __forceinline__ void add(const float* at, int lane, const Read& read) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const float4 part = read(reinterpret_cast<const float4*>(at) + (f * kTiles + t) * kWarp + lane);
        value[f][t][0] += part.x;
        value[f][t][1] += part.y;
        value[f][t][2] += part.z;
        value[f][t][3] += part.w;
      }
    }
  }
};

// Where an element of a warp's sums belongs.
__device__ __forceinline__ int row_of(int panel, int fragment, int element, int lane) {
  return panel * kSlabRows + fragment * kFragmentRows + lane / 4 + element / 2 * 8;
}
__device__ __forceinline__ int token_of(int tile, int element, int lane) {
  return tile * 8 + lane % 4 * 2 + element % 2;
}

// NaN stays NaN.
__device__ __forceinline__ float activate(float v, int activation) {
  switch (activation) {
    case 1:
      return v < 0.0f ? 0.0f : v;
    case 2:
      return 0.5f * v * erfcf(-0.70710678118654752f * v);
    case 3:  // (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z))
      return v / (1.0f + expf(-1.5957691216057308f * (v + 0.044715f * v * v * v)));
    case 4:
      return v / (1.0f + expf(-v));
    default:
      return v;
  }
}

// Stores y[token, row] of a finished sum.
template <Float16Kind Kind>
__device__ __forceinline__ void finish(const DecodeCall& call, float sum, int row, int token) {
  if (call.bias) sum += ptx::to_float<Kind>(call.bias[row]);
  sum = activate(sum, call.activation);
  const int64_t place = int64_t(token) * call.n + row;
  if (call.residual) sum += ptx::to_float<Kind>(call.residual[place]);
  call.y[place] = ptx::from_float<Kind>(sum);
}

}  // namespace ajour::cuda
