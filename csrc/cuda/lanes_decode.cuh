// 2:4 without tensor cores, for 1 to 4 rows of x: the slabs that `mma.sp` reads, multiplied on CUDA cores.
#pragma once
#include "cuda/nm_decode.cuh"

namespace ajour::cuda {

constexpr int kLanesMaxRows = 4;

// Sums of one lane: its eight rows of the panel (of each fragment g and g + 8) over the columns that it owns.
template <int ROWS>
struct LaneSums {
  float value[kFragments][2][ROWS];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kFragments * 2 * ROWS; ++i) value[i / (2 * ROWS)][i / ROWS % 2][i % ROWS] = 0.0f;
  }

  // Adds up the four lanes that share rows, and leaves the sums as `mma` would.
  __device__ __forceinline__ void gather(Sums<8>& sums, int lane) const {
    sums.clear();
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
#pragma unroll
        for (int t = 0; t < ROWS; ++t) {
          float sum = value[f][lower][t];
          sum += __shfl_xor_sync(0xffffffffu, sum, 1);
          sum += __shfl_xor_sync(0xffffffffu, sum, 2);
          if (lane % 4 == t / 2) sums.value[f][0][lower * 2 + t % 2] = sum;
        }
      }
    }
  }
};

// A lane has the values of `mma.sp`'s operand A, and picks x's two elements for each group of four columns by its code.
template <int ROWS>
struct SparseLanes {
  static constexpr int kMostTokens = 8;
  static constexpr int kColumns = SparseMma::kColumns;
  static constexpr bool kSkipsInHardware = true;
  static constexpr bool kIndexed = false;
  using Lanes = LaneSums<ROWS>;
  NMSlabs layout;

  __device__ __forceinline__ Extent extent(const DecodeCall& call, int slab) const {
    return SparseMma{layout}.extent(call, slab);
  }

  __device__ __forceinline__ static int place(int row, int chunk) { return spread_chunk(row, chunk); }

  // Selectors for pick_bytes of the codes of rows g (in the lower half) and g + 8 of column group c of 16 columns:
  // position p of four is bytes 2 p and 2 p + 1.
  __device__ __forceinline__ static uint32_t selectors(uint32_t word, int c) {
    const uint32_t codes = word >> 4 * c;
    return ((codes & 0x00030003u) | (codes << 6 & 0x03000300u)) * 0x22u + 0x10101010u;
  }

  template <Float16Kind Kind, int TOKENS>
  __device__ __forceinline__ void multiply(const uint8_t* slab, const XTile& x, int lane, LaneSums<ROWS>& sums) const {
    const int c = lane % 4;
    uint4 metadata[4];  // of the four lanes with the same rows
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      metadata[i] = *reinterpret_cast<const uint4*>(slab + NMSlabs::metadata_at(lane - c + i));
    }
#pragma unroll
    for (int step = 0; step < kColumns / 32; ++step) {
      uint2 window[2][ROWS];  // the four columns of this lane, in both halves of the step
#pragma unroll
      for (int i = 0; i < 2 * ROWS; ++i) {
        const int half = i / ROWS, chunk = step * 4 + half * 2 + c / 2;
        window[half][i % ROWS] =
            *reinterpret_cast<const uint2*>(x.template chunk<SparseMma>(i % ROWS, chunk) + c % 2 * 8);
      }
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        const uint4 a = *reinterpret_cast<const uint4*>(slab + NMSlabs::fragment_at(step, f, lane));
        const uint32_t pairs[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4& of = metadata[f % 2 * 2 + half];
          const uint32_t word = step ? (f / 2 ? of.w : of.z) : (f / 2 ? of.y : of.x), both = selectors(word, c);
#pragma unroll
          for (int lower = 0; lower < 2; ++lower) {
            const uint32_t pair = pairs[half * 2 + lower];
            const float w0 = ptx::to_float<Kind>(uint16_t(pair)), w1 = ptx::to_float<Kind>(uint16_t(pair >> 16));
#pragma unroll
            for (int t = 0; t < ROWS; ++t) {
              const uint2& four = window[half][t];
              const uint32_t two = ptx::pick_bytes(four.x, four.y, lower ? both >> 16 : both);
              sums.value[f][lower][t] += w0 * ptx::to_float<Kind>(uint16_t(two));
              sums.value[f][lower][t] += w1 * ptx::to_float<Kind>(uint16_t(two >> 16));
            }
          }
        }
      }
    }
  }

  template <Float16Kind Kind>
  __device__ __forceinline__ float exact(const DecodeCall&, int, int) const {
    return 0.0f;  // never needed
  }
};

}  // namespace ajour::cuda
