// From bitmap slabs to operands of the tensor cores.
#pragma once
#include "cuda/stripe_linear.cuh"
#include "layout/bitmap_slabs.h"

namespace ajour::cuda {

struct BitmapDecoder {
  static constexpr int kMostTokens = 64;
  static constexpr int kColumns = BitmapSlabs::kColumns;
  static constexpr int kSteps = BitmapSlabs::kSteps;
  static constexpr bool kSkipsInHardware = false;
  static constexpr bool kIndexed = true;
  using Lanes = NoLanes;

  __device__ __forceinline__ Extent extent(const DecodeCall& call, int slab) const {
    const int32_t begin = call.index[slab];
    return {begin, (call.index[slab + 1] - begin) * kSlabAlign};
  }

  __device__ __forceinline__ static int place(int row, int chunk) { return spread_chunk(row, chunk); }

  // How many values of two steps precede this lane's in each of them; two counts of 16 bits are summed over the warp at
  // once. `all` becomes both counts of the whole warp.
  __device__ __forceinline__ static uint32_t count_before(uint32_t own, int lane, uint32_t& all) {
    uint32_t sum = own;
#pragma unroll
    for (int away = 1; away < kWarp; away *= 2) {
      const uint32_t other = __shfl_up_sync(0xffffffffu, sum, away);
      if (lane >= away) sum += other;
    }
    all = __shfl_sync(0xffffffffu, sum, kWarp - 1);
    return sum - own;
  }

  // The eight elements whose bits are the lowest of `bits`, zeros elsewhere.
  __device__ __forceinline__ static void expand(const uint16_t* values, uint32_t bits, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t low = 0, high = 0;
      if (bits >> (2 * i) & 1) low = *values++;
      if (bits >> (2 * i + 1) & 1) high = *values++;
      a[i] = ptx::pick_bytes(low, high, 0x5410);
    }
  }

  template <Float16Kind Kind, int TOKENS>
  __device__ __forceinline__ void multiply(const uint8_t* slab, const XTile& x, int lane, Sums<TOKENS>& sums) const {
    const uint16_t* values = reinterpret_cast<const uint16_t*>(slab + BitmapSlabs::kBitBytes);
#pragma unroll 1
    for (int steps = 0; steps < kSteps; steps += 2) {
      const uint2 packed = *reinterpret_cast<const uint2*>(slab + lane * 16 + steps * 4);
      const uint32_t words[2] = {packed.x, packed.y};
      const uint32_t counts[2] = {running_counts(words[0]), running_counts(words[1])};
      uint32_t all;
      const uint32_t before = count_before(counts[0] >> 24 | counts[1] >> 24 << 16, lane, all);
      const int starts[2] = {int(before & 0xffff), int(all & 0xffff) + int(before >> 16)};
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        uint32_t b[(TOKENS + 15) / 16][4];  // of two token tiles
#pragma unroll
        for (int t = 0; t < TOKENS; t += 16) {
          const int row = (t + lane / 16 * 8) % TOKENS + lane % 8;
          ptx::load_matrices(b[t / 16], x.chunk<BitmapDecoder>(row, (steps + step) * 2 + lane / 8 % 2));
        }
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
          uint32_t a[4];
          expand(values + starts[step] + (f ? counts[step] >> 8 * (f - 1) & 0xff : 0), words[step] >> 8 * f, a);
#pragma unroll
          for (int t = 0; t < TOKENS / 8; ++t) {
            ptx::mma<Kind>(sums.value[f][t], a, b[t / 2][t % 2 * 2], b[t / 2][t % 2 * 2 + 1]);
          }
        }
      }
      values += (all & 0xffff) + (all >> 16);
    }
  }

  template <Float16Kind Kind>
  __device__ __forceinline__ float exact(const DecodeCall& call, int row, int token) const {
    const int inside = row % kSlabRows, fragment = inside / 16, lower = inside % 16 / 8;
    const int slabs = (call.k + kColumns - 1) / kColumns;
    float sum = 0.0f;
    for (int slab = 0; slab < slabs; ++slab) {
      const uint8_t* at = call.slabs + int64_t(call.index[int64_t(row / kSlabRows) * slabs + slab]) * kSlabAlign;
      const uint32_t* words = reinterpret_cast<const uint32_t*>(at);
      const uint16_t* value = reinterpret_cast<const uint16_t*>(at + BitmapSlabs::kBitBytes);
      for (int step = 0; step < kSteps; ++step) {
        for (int lane = 0; lane < kWarp; ++lane) {
          const uint32_t word = words[lane * kSteps + step];
          for (int bit = 0; bit < 32; ++bit) {
            if (!(word >> bit & 1)) continue;
            const float w = ptx::to_float<Kind>(*value++);
            if (bit / 8 != fragment || lane / 4 != inside % 8 || bit / 2 % 2 != lower) continue;
            const int column = slab * kColumns + step * 16 + lane % 4 * 2 + bit % 2 + bit / 4 % 2 * 8;
            sum += w * ptx::to_float<Kind>(call.x[token * call.x_stride + column]);
          }
        }
      }
    }
    return sum;
  }
};

}  // namespace ajour::cuda
