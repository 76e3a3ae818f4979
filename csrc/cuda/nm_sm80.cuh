// A block's part of the product for many rows: panels of a 2:4 weight and rows of x flow through a ring of stages in
// shared memory, `mma.sp` multiplies them, and what stripes share is summed in a fixed order.
//
// Slabs are in fragment order, so a warp reads its operand of w with 16-byte loads and without `ldmatrix`; x stands in
// rows of 64 columns whose chunks are spread over the banks, for `ldmatrix`. The tensor cores pick x's elements by the
// metadata, so a product with a zero of the weight is never made, not even where x is Inf or NaN.
#pragma once
#include "cuda/nm_sm80.h"
#include "cuda/tile.cuh"

namespace ajour::cuda {

template <Float16Kind Kind, int PANELS, int WARPS_M, int TOKENS>
class Sm80Linear {
  static constexpr Sm80Tile kTile{PANELS, WARPS_M, TOKENS};
  static constexpr int kThreads = kTile.warps() * kWarp;
  static constexpr int kTokenTiles = TOKENS / 8;
  static constexpr int kValueChunks = 4096 / 16;  // of a slab, before its metadata
  static constexpr int kRowChunks = kSm80RowBytes / 16;
  static_assert(kTile.warps() * 8 * kSm80Pitch * 4 <= kTile.stage_bytes());

 public:
  __device__ __forceinline__ Sm80Linear(const Sm80Call& call, uint8_t* shared)
      : call_(call),
        warp_(threadIdx.x / kWarp),
        lane_(threadIdx.x % kWarp),
        warp_n_(warp_ / WARPS_M),
        warp_m_(warp_ % WARPS_M),
        last_(reinterpret_cast<int*>(shared)),
        stages_(shared + kSm80HeadBytes) {}

  __device__ __forceinline__ void run() {
    const Stripes& stripes = call_.shape.stripes;
    const int begin = stripes.begin(blockIdx.x), stages = call_.shape.stages;
    left_ = stripes.begin(blockIdx.x + 1) - begin;
    int tile = begin / stripes.steps, first = begin % stripes.steps;
    aim(tile, first);
#pragma unroll 1
    for (int i = 0; i < stages - 1; ++i) {
      if (i < left_) fetch(i);
      ptx::copies_commit();
    }
    for (; left_ > 0; ++tile) {
      const int steps = min(left_, stripes.steps - first), left_after = left_ - steps;
      sum_.clear();
#pragma unroll 1
      while (left_ > left_after) multiply_next();
      finish_tile(tile, steps == stripes.steps);
      first = 0;
    }
  }

 private:
  // What is fetched next: this warp's panel and this thread's rows of x.
  __device__ __forceinline__ void aim(int tile, int step) {
    fetch_tile_ = tile;
    fetch_step_ = step;
    const int panel = call_.shape.column_of(tile) * PANELS + warp_n_;
    // a warp beyond the last panel takes the slab of zeros that follows them all, again and again
    live_ = panel < call_.shape.panels;
    slab_ = call_.slabs +
            (live_ ? int64_t(panel) * call_.shape.slabs + step : int64_t(call_.shape.panels) * call_.shape.slabs) *
                kSm80SlabBytes;
    x_row_ = call_.shape.row_of(tile) * kTile.rows() + threadIdx.x / kRowChunks;
  }

  __device__ __forceinline__ uint8_t* weight_of(int slot) const { return stages_ + slot * kTile.stage_bytes(); }
  __device__ __forceinline__ uint8_t* x_of(int slot) const { return weight_of(slot) + kTile.weight_bytes(); }

  // Starts the copies of the next step into a slot. The warps of one panel share its values; the first brings the
  // metadata.
  __device__ __forceinline__ void fetch(int slot) {
    uint8_t* to = weight_of(slot) + warp_n_ * kSm80SlabBytes;
#pragma unroll
    for (int i = 0; i < kValueChunks / kWarp / WARPS_M; ++i) {
      const int at = ((warp_m_ * (kValueChunks / kWarp / WARPS_M) + i) * kWarp + lane_) * 16;
      ptx::copy_16(to + at, slab_ + at, 16);
    }
    if (warp_m_ == 0) ptx::copy_16(to + NMSlabs::metadata_at(lane_), slab_ + NMSlabs::metadata_at(lane_), 16);
    fetch_x(x_of(slot));
    if (++fetch_step_ == call_.shape.slabs) {
      if (fetch_tile_ + 1 < call_.shape.stripes.tiles) aim(fetch_tile_ + 1, 0);
    } else if (live_) {
      slab_ += kSm80SlabBytes;
    }
  }

  __device__ __forceinline__ void fetch_x(uint8_t* to) {
    constexpr int kRowsAtOnce = kThreads / kRowChunks;
    const int chunk = threadIdx.x % kRowChunks, row = threadIdx.x / kRowChunks;
    const int column = fetch_step_ * kSm80Columns + chunk * 8, left = call_.k - column;
    const int valid = left < 0 ? 0 : left > 8 ? 16 : left * 2;
#pragma unroll
    for (int i = 0; i < kTile.rows() / kRowsAtOnce; ++i) {
      const int bytes = x_row_ + i * kRowsAtOnce < call_.m ? valid : 0;
      const uint16_t* from = call_.x + (bytes ? (x_row_ + i * kRowsAtOnce) * call_.x_stride + column : 0);
      // kRowsAtOnce is a multiple of 8, so every row of a thread has its chunk in the same place
      ptx::copy_16(to + (row + i * kRowsAtOnce) * kSm80RowBytes + spread_chunk(row, chunk) * 16, from, bytes);
    }
  }

  __device__ __forceinline__ void multiply_next() {
    const int stages = call_.shape.stages;
    ptx::copies_wait(stages - 2);
    __syncthreads();  // the slot has landed for everyone, and everyone is done with the one that is filled next
    if (left_ >= stages) fetch(slot_ ? slot_ - 1 : stages - 1);
    ptx::copies_commit();
    multiply(weight_of(slot_) + warp_n_ * kSm80SlabBytes, x_of(slot_) + warp_m_ * TOKENS * kSm80RowBytes);
    --left_;
    if (++slot_ == stages) slot_ = 0;
  }

  __device__ __forceinline__ void load_x(uint32_t (&b)[4], const uint8_t* x, int step, int tile) const {
    const int row = tile * 8 + lane_ % 8;
    ptx::load_matrices(b, x + row * kSm80RowBytes + spread_chunk(lane_ % 8, step * 4 + lane_ / 8) * 16);
  }

  // sums += slab @ x.T; the next 8 rows of x are loaded while these are multiplied.
  __device__ __forceinline__ void multiply(const uint8_t* slab, const uint8_t* x) {
    const uint4 packed = *reinterpret_cast<const uint4*>(slab + NMSlabs::metadata_at(lane_));
    const uint32_t metadata[4] = {packed.x, packed.y, packed.z, packed.w};
    uint32_t b[2][4];
    load_x(b[0], x, 0, 0);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint4 a[kFragments];
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        a[f] = *reinterpret_cast<const uint4*>(slab + NMSlabs::fragment_at(step, f, lane_));
      }
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        const int next = step * kTokenTiles + t + 1;
        if (next < 2 * kTokenTiles) load_x(b[next % 2], x, next / kTokenTiles, next % kTokenTiles);
#pragma unroll
        for (int f = 0; f < kFragments; f += 2) {
          const uint32_t word = metadata[step * 2 + f / 2];
          ptx::mma_sparse<Kind, 0>(sum_.value[f][t], a[f], b[(next - 1) % 2], word);
          ptx::mma_sparse<Kind, 1>(sum_.value[f + 1][t], a[f + 1], b[(next - 1) % 2], word);
        }
      }
    }
  }

  __device__ __forceinline__ void finish_tile(int tile, bool whole) {
    __syncthreads();  // everyone is done with the stage that becomes room()
    if (!whole && !is_last(tile)) return;
    const int panel = call_.shape.column_of(tile) * PANELS + warp_n_;
    if (panel >= call_.shape.panels) return;
    if (!whole) add_stripes(tile);
    write(panel * kSlabRows, call_.shape.row_of(tile) * kTile.rows() + warp_m_ * TOKENS);
  }

  __device__ __forceinline__ float* part(int stripe, int tile) const {
    const int64_t part = call_.shape.stripes.place(stripe, tile) * int64_t(kTile.warps()) + warp_;
    return reinterpret_cast<float*>(call_.scratch) + part * (kSlabRows * TOKENS);
  }

  // Leaves this stripe's part of the tile for whoever arrives last; says whether that is this block.
  __device__ __forceinline__ bool is_last(int tile) {
    sum_.store(part(blockIdx.x, tile), lane_);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      const unsigned others = call_.shape.stripes.last_holder(tile) - call_.shape.stripes.first_holder(tile);
      *last_ = atomicInc(call_.counters + tile, others) == others;  // which makes it zero again, for the next launch
      __threadfence();
    }
    __syncthreads();
    return *last_;
  }

  __device__ __forceinline__ void add_stripes(int tile) {
    sum_.clear();
    const int last = call_.shape.stripes.last_holder(tile);
    for (int stripe = call_.shape.stripes.first_holder(tile); stripe <= last; ++stripe) {
      sum_.add(part(stripe, tile), lane_, [](const float4* at) { return __ldcg(at); });
    }
  }

  // Where this warp finishes: in the stage that was multiplied last, which is not filled before the next step.
  __device__ __forceinline__ float* room() const {
    return reinterpret_cast<float*>(weight_of(slot_ ? slot_ - 1 : call_.shape.stages - 1)) + warp_ * 8 * kSm80Pitch;
  }

  // Through shared memory, 8 rows of y at a time: a lane then stores 16 neighbouring bytes, and the epilogue is there
  // once, not once for each register.
  __device__ __forceinline__ void write(int row, int token) {
#pragma unroll 1
    for (int t = 0; t < kTokenTiles; ++t) {
      __syncwarp();  // the room is written again
#pragma unroll
      for (int of = 0; of < kTokenTiles; ++of) {
        if (of == t) put(room(), of);
      }
      __syncwarp();
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        const int at = i * 4 + lane_ / 8, chunk = lane_ % 8 * 8;
        finish_chunk(room() + at * kSm80Pitch + chunk, token + t * 8 + at, row + chunk);
      }
    }
  }

  __device__ __forceinline__ void put(float* room, int tile) const {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        room[token_of(0, e, lane_) * kSm80Pitch + row_of(0, f, e, lane_)] = sum_.value[f][tile][e];
      }
    }
  }

  // Finishes and stores y[token, row..row + 7] from 8 sums in shared memory.
  __device__ __forceinline__ void finish_chunk(float* sums, int token, int row) const {
    if (token >= call_.m || row >= call_.n) return;
    const int64_t place = int64_t(token) * call_.n + row;
    const int count = min(8, call_.n - row);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      float sum = sums[i];
      if (call_.bias) sum += ptx::to_float<Kind>(call_.bias[row + i]);
      sum = activate(sum, call_.activation);
      if (call_.residual) sum += ptx::to_float<Kind>(call_.residual[place + i]);
      if (call_.whole_chunks) {
        sums[i] = sum;
      } else {
        call_.y[place + i] = ptx::from_float<Kind>(sum);
      }
    }
    if (!call_.whole_chunks) return;
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pair[i] = ptx::from_float<Kind>(sums[2 * i]) | uint32_t(ptx::from_float<Kind>(sums[2 * i + 1])) << 16;
    }
    *reinterpret_cast<uint4*>(call_.y + place) = {pair[0], pair[1], pair[2], pair[3]};
  }

  const Sm80Call& call_;
  const int warp_, lane_, warp_n_, warp_m_;
  int* const last_;
  uint8_t* const stages_;
  int left_ = 0;                         // steps of the stripe, with the one that is multiplied
  int slot_ = 0;                         // where that one lies
  int fetch_tile_ = 0, fetch_step_ = 0;  // what is fetched next
  const uint8_t* slab_ = nullptr;        // of that
  int x_row_ = 0;                        // of that, the first row of this thread
  bool live_ = false;                    // whether this warp's panel exists there
  Sums<TOKENS> sum_;
};

}  // namespace ajour::cuda
