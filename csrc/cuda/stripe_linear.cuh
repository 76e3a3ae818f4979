// The decode kernel's skeleton: each block walks its stripe of the work, slabs and x flow through a ring of stages in
// shared memory, warps multiply, and what stripes share is summed in a fixed order. A decoder says how a slab becomes
// operands:
//   kMostTokens         rows of x in the largest tile that it is compiled for
//   kColumns            columns of a slab
//   kSkipsInHardware    whether products with x's elements at zeros of the weight are never made
//   kIndexed            whether where a slab lies must be read from memory
//   Lanes               what a lane sums on its own, for a decoder without tensor cores; else NoLanes
//   Extent extent(call, i)                           where slab i lies
//   int place(row, chunk)                            where an 8-column chunk of x stands in its row of shared memory
//   multiply<Kind, TOKENS>(slab, x, lane, sums)      sums += slab @ x.T, where sums are Sums<TOKENS> or Lanes
//   float exact<Kind>(call, row, token)              one output, product by product over the stored places
#pragma once
#include <type_traits>

#include "cuda/tile.cuh"

namespace ajour::cuda {

struct Extent {
  int begin;  // in units of 16 bytes
  int bytes;
};

struct NoLanes {};

// A tile of x in shared memory, as one warp sees it.
struct XTile {
  const uint8_t* data;
  int row_chunks;   // chunks of 8 columns in a row
  int first_chunk;  // of the warp's slab

  template <class Decoder>
  __device__ __forceinline__ const uint8_t* chunk(int row, int chunk) const {
    return data + (row * row_chunks + Decoder::place(row, first_chunk + chunk)) * 16;
  }
};

// Inf or NaN of x met a zero of the weight, whose product does not count: the outputs of this lane that are NaN are
// summed anew. Out of line, as its registers would make the kernel spill.
template <class Decoder, Float16Kind Kind, int TOKENS>
__device__ __noinline__ void mend(const Decoder& decoder, const DecodeCall& call, int panel, int lane) {
  constexpr int kTiles = TOKENS / 8;
#pragma unroll 1
  for (int i = 0; i < kFragments * kTiles * 4; ++i) {
    const int row = row_of(panel, i / (kTiles * 4), i % 4, lane), token = token_of(i / 4 % kTiles, i % 4, lane);
    if (row >= call.n || token >= call.m) continue;
    const float known = ptx::to_float<Kind>(call.y[int64_t(token) * call.n + row]);
    if (known != known) finish<Kind>(call, decoder.template exact<Kind>(call, row, token), row, token);
  }
}

template <class Decoder, Float16Kind Kind, int TOKENS>
class StripeLinear {
  static constexpr int kWarpsN = decode_warps_n(TOKENS), kWarpsK = decode_warps_k(TOKENS);
  static constexpr int kThreads = kDecodeWarps * kWarp;
  static constexpr int kStepColumns = Decoder::kColumns * kWarpsK;
  static constexpr int kRowChunks = kStepColumns / 8;
  static constexpr bool kOnLanes = !std::is_same_v<typename Decoder::Lanes, NoLanes>;

 public:
  __device__ __forceinline__ StripeLinear(const Decoder& decoder, const DecodeCall& call, uint8_t* shared)
      : decoder_(decoder),
        call_(call),
        warp_(threadIdx.x / kWarp),
        lane_(threadIdx.x % kWarp),
        warp_n_(warp_ / kWarpsK),
        warp_k_(warp_ % kWarpsK),
        barriers_(reinterpret_cast<uint64_t*>(shared)),
        last_(reinterpret_cast<int*>(shared + kMaxStages * 8)),
        sums_(reinterpret_cast<float*>(shared + DecodeShape::barrier_bytes())),
        stages_(shared + DecodeShape::barrier_bytes() + call.shape.sum_bytes) {}

  __device__ __forceinline__ void run() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < call_.shape.stages; ++i) {
        ptx::barrier_init(barriers_ + i, kThreads + (ptx::kBulk ? kDecodeWarps : 0));
      }
      ptx::barrier_init_done();
    }
    __syncthreads();
    const int begin = call_.shape.stripes.begin(blockIdx.x);
    tile_ = fetch_tile_ = begin / call_.shape.stripes.steps;
    fetch_step_ = begin % call_.shape.stripes.steps;
    if (Decoder::kIndexed) ahead_ = extent(fetch_tile_, fetch_step_);
    left_ = call_.shape.stripes.begin(blockIdx.x + 1) - begin;
    int first = fetch_step_;
#pragma unroll 1
    for (int i = 0; i < min(call_.shape.stages - 1, left_); ++i) fetch(i);
    for (; left_ > 0; ++tile_) {
      const int steps = min(left_, call_.shape.stripes.steps - first), left_after = left_ - steps;
      if constexpr (kOnLanes) {
        lanes_.clear();
      } else {
        sum_.clear();
      }
#pragma unroll 1
      while (left_ > left_after) multiply_next();
      if constexpr (kOnLanes) lanes_.gather(sum_, lane_);
      finish_tile(steps == call_.shape.stripes.steps);
      first = 0;
    }
  }

 private:
  __device__ __forceinline__ int panel(int tile) const { return tile * kWarpsN + warp_n_; }
  __device__ __forceinline__ int slab(int step) const { return step * kWarpsK + warp_k_; }
  // A warp beyond the last panel or slab takes the slab of zeros that follows them all: a branch around the products
  // would hold all sums in registers twice.
  __device__ __forceinline__ Extent extent(int tile, int step) const {
    const bool live = panel(tile) < call_.shape.panels && slab(step) < call_.shape.slabs;
    return decoder_.extent(
        call_, live ? panel(tile) * call_.shape.slabs + slab(step) : call_.shape.panels * call_.shape.slabs);
  }
  __device__ __forceinline__ uint8_t* x_of(int slot) const { return stages_ + slot * call_.shape.stage_bytes(); }
  __device__ __forceinline__ uint8_t* slab_of(int slot) const {
    return x_of(slot) + call_.shape.x_bytes + warp_ * call_.shape.room;
  }

  // Starts the copies of the next step into a slot; every warp brings its own slab, all bring x.
  __device__ __forceinline__ void fetch(int slot) {
    uint64_t* barrier = barriers_ + slot;
    const Extent now = Decoder::kIndexed ? ahead_ : extent(fetch_tile_, fetch_step_);
    const uint8_t* from = call_.slabs + int64_t(now.begin) * kSlabAlign;
    if (ptx::kBulk) {
      if (lane_ == 0) {
        ptx::arrive_expecting(barrier, now.bytes);
        ptx::copy_bulk(slab_of(slot), from, now.bytes, barrier);
      }
    } else {
      uint8_t* to = slab_of(slot);
      for (int i = lane_ * 16; i < now.bytes; i += kWarp * 16) {
        ptx::copy_16(to + i, from + i, 16);
      }
    }
    fetch_x(x_of(slot), fetch_step_ * kStepColumns);
    ptx::arrive_with_copies(barrier);
    if (++fetch_step_ == call_.shape.stripes.steps) {
      fetch_step_ = 0;
      ++fetch_tile_;
    }
    if (Decoder::kIndexed) ahead_ = extent(fetch_tile_, fetch_step_);  // read a step before it is needed
  }

  // Only the rows that there are: a token's sums depend on its own row alone, and nobody reads those of the others.
  __device__ __forceinline__ void fetch_x(uint8_t* tile, int first_column) {
    constexpr int kRowsAtOnce = kThreads / kRowChunks;
    const int chunk = threadIdx.x % kRowChunks, column = first_column + chunk * 8, left = call_.k - column;
    const int valid = left < 0 ? 0 : left > 8 ? 8 : left;
#pragma unroll 1
    for (int row = threadIdx.x / kRowChunks; row < call_.m; row += kRowsAtOnce) {
      uint8_t* to = tile + (row * kRowChunks + Decoder::place(row, chunk)) * 16;
      const uint16_t* from = call_.x + (valid ? row * call_.x_stride + column : 0);
      if (call_.whole_chunks) {
        ptx::copy_16(to, from, valid * 2);
      } else {
#pragma unroll 1
        for (int e = 0; e < 8; ++e) reinterpret_cast<uint16_t*>(to)[e] = e < valid ? from[e] : uint16_t(0);
      }
    }
  }

  __device__ __forceinline__ void multiply_next() {
    __syncthreads();  // everyone is done with the slot that is filled next
    const int stages = call_.shape.stages;
    if (left_ >= stages) fetch(slot_ ? slot_ - 1 : stages - 1);
    ptx::barrier_wait(barriers_ + slot_, parity_);
    const XTile x{x_of(slot_), kRowChunks, warp_k_ * (Decoder::kColumns / 8)};
    if constexpr (kOnLanes) {
      decoder_.template multiply<Kind, TOKENS>(slab_of(slot_), x, lane_, lanes_);
    } else {
      decoder_.template multiply<Kind, TOKENS>(slab_of(slot_), x, lane_, sum_);
    }
    --left_;
    if (++slot_ == stages) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }

  // Where the warps of one panel add up, and finish.
  __device__ __forceinline__ float* room() const {
    constexpr int kRows = kWarpsK > 1 ? (kWarpsK - 1) * kSlabRows : kFragmentRows;
    return sums_ + warp_n_ * kRows * TOKENS;
  }

  // The sums of the warps with warp_k_ == 0 become those of all warps, in the order of the slabs.
  __device__ __forceinline__ void add_warps() {
    if (kWarpsK == 1) return;
    constexpr int kFloats = kSlabRows * TOKENS;
    if (warp_k_) sum_.store(room() + (warp_k_ - 1) * kFloats, lane_);
    __syncthreads();
    if (warp_k_) return;
    for (int k = 0; k < kWarpsK - 1; ++k) {
      sum_.add(room() + k * kFloats, lane_, [](const float4* at) { return *at; });
    }
    __syncwarp();  // the room is written again
  }

  __device__ __forceinline__ void finish_tile(bool whole) {
    add_warps();
    if (!whole && !is_last()) return;
    if (warp_k_ || panel(tile_) >= call_.shape.panels) return;
    if (!whole) add_stripes();
    write();
  }

  __device__ __forceinline__ float* part(int stripe) const {
    const int64_t part = call_.shape.stripes.place(stripe, tile_) * int64_t(kWarpsN) + warp_n_;
    return reinterpret_cast<float*>(call_.scratch) + part * (kSlabRows * TOKENS);
  }

  // Leaves this stripe's part of the tile for whoever arrives last; says whether that is this block.
  __device__ __forceinline__ bool is_last() {
    if (!warp_k_) {
      sum_.store(part(blockIdx.x), lane_);
      __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      const unsigned others = call_.shape.stripes.last_holder(tile_) - call_.shape.stripes.first_holder(tile_);
      *last_ = atomicInc(call_.counters + tile_, others) == others;  // which makes it zero again, for the next launch
      __threadfence();
    }
    __syncthreads();
    return *last_;
  }

  // The compiler takes four parts at once, as their places are apart by a constant: their loads from L2 wait together.
  // Up to 8 rows that is 25 registers more than one at a time would need (114 instead of 89 for 2:4, sm_90a): four
  // blocks fit a multiprocessor instead of five, and configurations ask for three at most.
  __device__ __forceinline__ void add_stripes() {
    sum_.clear();
    const int last = call_.shape.stripes.last_holder(tile_);
    for (int stripe = call_.shape.stripes.first_holder(tile_); stripe <= last; ++stripe) {
      sum_.add(part(stripe), lane_, [](const float4* at) { return __ldcg(at); });
    }
  }

  // Through shared memory, as registers can't be indexed: a copy of the epilogue for each element would spill.
  __device__ __forceinline__ void write() {
    constexpr int kValues = TOKENS / 8 * 4;  // of a lane in a fragment
    float* mine = room() + lane_;
    bool lost = false;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) mine[i * kWarp] = sum_.value[f][i / 4][i % 4];
#pragma unroll 1
      for (int i = 0; i < kValues; ++i) {
        const float sum = mine[i * kWarp];
        if (row_of(panel(tile_), f, i % 4, lane_) < call_.n && token_of(i / 4, i % 4, lane_) < call_.m) {
          finish<Kind>(call_, sum, row_of(panel(tile_), f, i % 4, lane_), token_of(i / 4, i % 4, lane_));
          lost |= sum != sum;
        }
      }
    }
    if (!Decoder::kSkipsInHardware && lost) mend<Decoder, Kind, TOKENS>(decoder_, call_, panel(tile_), lane_);
  }

  const Decoder& decoder_;
  const DecodeCall& call_;
  const int warp_, lane_, warp_n_, warp_k_;
  uint64_t* const barriers_;
  int* const last_;
  float* const sums_;
  uint8_t* const stages_;
  int left_ = 0;                         // steps of the stripe, with the one that is multiplied
  int tile_ = 0;                         // of that step
  int slot_ = 0;                         // where it lies
  uint32_t parity_ = 0;                  // of the slot's barrier
  int fetch_tile_ = 0, fetch_step_ = 0;  // what is fetched next
  Extent ahead_{};                       // of what is fetched next
  Sums<TOKENS> sum_;
  typename Decoder::Lanes lanes_;
};

}  // namespace ajour::cuda
