// From N:M slabs to operands of the tensor cores.
#pragma once
#include "cuda/stripe_linear.cuh"
#include "layout/nm_slabs.h"

namespace ajour::cuda {

// 2:4: `mma.sp` reads slabs as they are and picks x's elements by the metadata.
struct SparseMma {
  static constexpr int kMostTokens = 64;
  static constexpr int kColumns = 64;
  static constexpr bool kSkipsInHardware = true;
  static constexpr bool kIndexed = false;
  using Lanes = NoLanes;
  NMSlabs layout;

  __device__ __forceinline__ Extent extent(const DecodeCall&, int slab) const {
    return {slab * (layout.slab_bytes / kSlabAlign), layout.slab_bytes};
  }

  __device__ __forceinline__ static int place(int row, int chunk) { return spread_chunk(row, chunk); }

  template <Float16Kind Kind, int TOKENS>
  __device__ __forceinline__ void multiply(const uint8_t* slab, const XTile& x, int lane, Sums<TOKENS>& sums) const {
    const uint4 packed = *reinterpret_cast<const uint4*>(slab + NMSlabs::metadata_at(lane));
    const uint32_t metadata[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int step = 0; step < kColumns / 32; ++step) {
      uint4 a[kFragments];
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        a[f] = *reinterpret_cast<const uint4*>(slab + NMSlabs::fragment_at(step, f, lane));
      }
#pragma unroll
      for (int t = 0; t < TOKENS / 8; ++t) {
        uint32_t b[4];
        ptx::load_matrices(b, x.chunk<SparseMma>(t * 8 + lane % 8, step * 4 + lane / 8));
#pragma unroll
        for (int f = 0; f < kFragments; f += 2) {
          const uint32_t word = metadata[step * 2 + f / 2];
          ptx::mma_sparse<Kind, 0>(sums.value[f][t], a[f], b, word);
          ptx::mma_sparse<Kind, 1>(sums.value[f + 1][t], a[f + 1], b, word);
        }
      }
    }
  }

  template <Float16Kind Kind>
  __device__ __forceinline__ float exact(const DecodeCall&, int, int) const {
    return 0.0f;  // never needed
  }
};

// Any other pattern: a lane shifts each kept value to its place among the 32 columns that it owns of a row. Lane c of a
// fragment owns columns 32 c.. of the slab; step q of `mma.m16n8k16` takes four of them from every lane, for x alike.
// With KEEP known, a row is straight code; 0 takes any.
template <int GROUP, int KEEP = 0>
struct PlacedValues {
  static constexpr int kMostTokens = KEEP ? 32 : 64;  // straight code for more would need more than 255 registers
  static constexpr int kColumns = 128;
  static constexpr bool kSkipsInHardware = false;
  static constexpr bool kIndexed = false;
  using Lanes = NoLanes;
  static constexpr int kOwned = 32;  // columns of a lane
  static constexpr int kBits = NMSlabs::position_bits(GROUP), kPerWord = 32 / kBits;
  NMSlabs layout;

  __device__ __forceinline__ Extent extent(const DecodeCall&, int slab) const {
    return {slab * (layout.slab_bytes / kSlabAlign), layout.slab_bytes};
  }

  // Chunks 4 c + j, which lane c reads, go to 2 c + j % 2 of half j / 2, so that its reads meet no bank twice.
  __device__ __forceinline__ static int place(int row, int chunk) {
    const int c = chunk / 4 % 4, j = chunk % 4;
    return spread_chunk(row, chunk / 16 * 16 + j / 2 * 8 + c * 2 + j % 2);
  }

  // The 32 columns of one row, as pairs of neighbours.
  struct Row {
    uint32_t pair[kOwned / 2];
  };

  // A lane's values one after the other: the next one, and the word that holds its place.
  struct Cursor {
    int value = 0;
    uint32_t places = 0;
  };

  __device__ __forceinline__ Row expand(const uint8_t* slab, int lane, Cursor& next) const {
    Row row;
#pragma unroll
    for (int i = 0; i < kOwned / 2; ++i) row.pair[i] = 0;
    if constexpr (KEEP != 0) {
      expand_known(slab, lane, next, row);
    } else {
#pragma unroll
      for (int group = 0; group < kOwned / GROUP; ++group) {
#pragma unroll 1
        for (int e = layout.keep; e > 0; --e, ++next.value, next.places >>= kBits) {
          if (next.value % kPerWord == 0) {
            const uint8_t* word = slab + layout.places_at(next.value / kPerWord, lane);
            next.places = *reinterpret_cast<const uint32_t*>(word);
          }
          const uint32_t bits = *reinterpret_cast<const uint16_t*>(slab + NMSlabs::value_at(next.value, lane));
          const int shift = int(next.places & (GROUP - 1)) * 16;
#pragma unroll
          for (int i = 0; i < GROUP / 2; ++i) {
            row.pair[group * (GROUP / 2) + i] |= ptx::shift_left(bits, shift - 32 * i);
          }
        }
      }
    }
    return row;
  }

  // Two values at a time, and both pairs of four columns in one shift of 64 bits.
  __device__ __forceinline__ void expand_known(const uint8_t* slab, int lane, Cursor& next, Row& row) const {
    constexpr int kValues = kOwned / GROUP * KEEP;
    static_assert(kValues % 2 == 0, "a row begins with a whole pair of values");
    uint32_t two = 0;
#pragma unroll
    for (int i = 0; i < kValues; ++i, ++next.value) {
      if (i == 0 || next.value % kPerWord == 0) {
        next.places = *reinterpret_cast<const uint32_t*>(
            slab + NMSlabs::places_at(8 * kValues * 2 * kWarp, next.value / kPerWord, lane));
      }
      if (i % 2 == 0) two = *reinterpret_cast<const uint32_t*>(slab + NMSlabs::value_at(next.value, lane));
      const uint32_t bits = i % 2 ? two >> 16 : two & 0xffff;
      const int shift = int(next.places >> next.value % kPerWord * kBits & (GROUP - 1)) * 16;
#pragma unroll
      for (int q = 0; q < GROUP / 4; ++q) {
        const uint64_t four = ptx::shift_left(uint64_t(bits), shift - 64 * q);
        row.pair[i / KEEP * (GROUP / 2) + 2 * q] |= uint32_t(four);
        row.pair[i / KEEP * (GROUP / 2) + 2 * q + 1] |= uint32_t(four >> 32);
      }
    }
  }

  template <Float16Kind Kind, int TOKENS>
  __device__ __forceinline__ void multiply(const uint8_t* slab, const XTile& x, int lane, Sums<TOKENS>& sums) const {
    Cursor next;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const Row upper = expand(slab, lane, next);  // row g of the fragment
      const Row lower = expand(slab, lane, next);  // and g + 8
#pragma unroll
      for (int t = 0; t < TOKENS / 8; ++t) {
#pragma unroll
        for (int j = 0; j < kOwned / 8; ++j) {  // a chunk of x is two steps
          const uint4 b = *reinterpret_cast<const uint4*>(x.chunk<PlacedValues>(t * 8 + lane / 4, lane % 4 * 4 + j));
          const uint32_t *up = upper.pair + 4 * j, *low = lower.pair + 4 * j;
          ptx::mma<Kind>(sums.value[f][t], {up[0], low[0], up[1], low[1]}, b.x, b.y);
          ptx::mma<Kind>(sums.value[f][t], {up[2], low[2], up[3], low[3]}, b.z, b.w);
        }
      }
    }
  }

  template <Float16Kind Kind>
  __device__ __forceinline__ float exact(const DecodeCall& call, int row, int token) const {
    const int inside = row % kSlabRows, in_row = layout.row_values;
    const int first = (inside / 16 * 2 + inside % 16 / 8) * in_row;
    float sum = 0.0f;
#pragma unroll 1
    for (int column = 0; column < call.k; column += GROUP) {
      const int lane = inside % 8 * 4 + column % kColumns / kOwned;
      const uint8_t* slab =
          call.slabs +
          (int64_t(row / kSlabRows) * ((call.k + kColumns - 1) / kColumns) + column / kColumns) * layout.slab_bytes;
#pragma unroll 1
      for (int e = 0; e < layout.keep; ++e) {
        const int value = first + column % kOwned / GROUP * layout.keep + e;
        const uint32_t word = *reinterpret_cast<const uint32_t*>(slab + layout.places_at(value / kPerWord, lane));
        const int at = column + int(word >> value % kPerWord * kBits & (GROUP - 1));
        const float w = ptx::to_float<Kind>(*reinterpret_cast<const uint16_t*>(slab + NMSlabs::value_at(value, lane)));
        if (at < call.k) sum += w * ptx::to_float<Kind>(call.x[token * call.x_stride + at]);
      }
    }
    return sum;
  }
};

}  // namespace ajour::cuda
