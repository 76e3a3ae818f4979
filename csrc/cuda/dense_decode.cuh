// A dense weight in the decode kernels' skeleton: nothing to decode, so what a sparse weight gains over it is
// sparsity's.
#pragma once
#include "cuda/stripe_linear.cuh"
#include "layout/dense_slabs.h"

namespace ajour::cuda {

struct DenseMma {
  static constexpr int kMostTokens = 64;
  static constexpr int kColumns = DenseSlabs::kColumns;
  static constexpr bool kSkipsInHardware = true;  // there is none to skip: a zero counts, as in any dense product
  static constexpr bool kIndexed = false;
  using Lanes = NoLanes;

  __device__ __forceinline__ Extent extent(const DecodeCall&, int slab) const {
    return {slab * (DenseSlabs::kSlabBytes / kSlabAlign), DenseSlabs::kSlabBytes};
  }

  __device__ __forceinline__ static int place(int row, int chunk) { return spread_chunk(row, chunk); }

  template <Float16Kind Kind, int TOKENS>
  __device__ __forceinline__ void multiply(const uint8_t* slab, const XTile& x, int lane, Sums<TOKENS>& sums) const {
#pragma unroll
    for (int step = 0; step < DenseSlabs::kSteps; step += 2) {
      uint4 a[2][kFragments];
#pragma unroll
      for (int i = 0; i < 2 * kFragments; ++i) {
        const int f = i % kFragments;
        a[i / kFragments][f] =
            *reinterpret_cast<const uint4*>(slab + DenseSlabs::fragment_at(step + i / kFragments, f, lane));
      }
#pragma unroll
      for (int t = 0; t < TOKENS / 8; ++t) {
        uint32_t b[4];  // of both steps
        ptx::load_matrices(b, x.chunk<DenseMma>(t * 8 + lane % 8, step * 2 + lane / 8));
#pragma unroll
        for (int i = 0; i < 2 * kFragments; ++i) {
          const int f = i % kFragments, half = i / kFragments;
          const uint4& of = a[half][f];
          ptx::mma<Kind>(sums.value[f][t], {of.x, of.y, of.z, of.w}, b[2 * half], b[2 * half + 1]);
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
