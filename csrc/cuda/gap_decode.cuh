// The decode kernel of gap rows, for 1 to 4 rows of x and few non-zeros: on CUDA cores, as each value is one product
// for each row, and a tensor core would multiply zeros. A warp takes a group of four rows in a span; its values and
// gaps go straight from memory to registers, a few steps ahead, and x stands in shared memory, a slot for each column
// with all its rows.
#pragma once
#include "cuda/tile.cuh"
#include "layout/gap_rows.h"

namespace ajour::cuda {

struct GapWeight {
  GapRows layout;
  const int32_t* order;
  GapShape shape;
};

// A column's elements of x: as a float for one row, else as they are.
template <Float16Kind Kind, int TOKENS>
struct Slot;

template <Float16Kind Kind>
struct Slot<Kind, 1> {
  float at;
  __device__ __forceinline__ void set(const uint16_t (&x)[1]) { at = ptx::to_float<Kind>(x[0]); }
  __device__ __forceinline__ void get(float (&x)[1]) const { x[0] = at; }
};

template <Float16Kind Kind, int TOKENS>
struct Slot {
  uint32_t pair[TOKENS / 2];
  __device__ __forceinline__ void set(const uint16_t (&x)[TOKENS]) {
#pragma unroll
    for (int i = 0; i < TOKENS / 2; ++i) pair[i] = x[2 * i] | uint32_t(x[2 * i + 1]) << 16;
  }
  __device__ __forceinline__ void get(float (&x)[TOKENS]) const {
#pragma unroll
    for (int i = 0; i < TOKENS; ++i) x[i] = ptx::to_float<Kind>(uint16_t(pair[i / 2] >> i % 2 * 16));
  }
};

// One output, product by product over the stored places: Inf or NaN of x stood where a code without a value pointed.
template <Float16Kind Kind>
__device__ __noinline__ float exact_gaps(const DecodeCall& call, const GapWeight& w, int group, int row, int token) {
  float sum = 0.0f;
#pragma unroll 1
  for (int span = 0; span < w.layout.spans; ++span) {
    const int32_t* begin = call.index + span * int64_t(w.layout.groups()) + group;
    const uint8_t* at = call.slabs + int64_t(begin[0]) * kGapUnit;
    const int codes = (begin[1] - begin[0] - 1) / GapRows::step_units() * kGapValues;
#pragma unroll 1
    for (int lane = row * kGapLanes; lane < (row + 1) * kGapLanes; ++lane) {
      int slot = *reinterpret_cast<const uint16_t*>(at + GapRows::start_at(lane));
      bool far = false;
#pragma unroll 1
      for (int i = 0; i < codes; ++i) {
        const int step = i / kGapValues, place = i % kGapValues, gap = at[GapRows::gaps_at(step, lane) + place];
        slot += gap;
        if (gap != kGapFar && (gap || far)) {
          const uint16_t value = *reinterpret_cast<const uint16_t*>(at + GapRows::values_at(step, lane) + place * 2);
          const uint16_t x = call.x[token * call.x_stride + span * w.layout.width + slot - 1];
          sum += ptx::to_float<Kind>(value) * ptx::to_float<Kind>(x);
        }
        far = gap == kGapFar;
      }
    }
  }
  return sum;
}

template <Float16Kind Kind, int TOKENS>
class GapLinear {
  static constexpr int kAhead = 4;  // steps
  using X = Slot<Kind, TOKENS>;

 public:
  __device__ __forceinline__ GapLinear(const DecodeCall& call, const GapWeight& weight, uint8_t* shared)
      : call_(call),
        w_(weight),
        lane_(threadIdx.x % kWarp),
        span_(blockIdx.x / weight.shape.blocks),
        slots_(reinterpret_cast<X*>(shared)) {}

  __device__ __forceinline__ void run() {
    const int first = blockIdx.x % w_.shape.blocks * kGapWarps + threadIdx.x / kWarp;
    begin(first);
    fill_slots();
    __syncthreads();
#pragma unroll 1
    for (int group = first; group < w_.layout.groups();) {
      sum_group();
      const int done = group;
      group += w_.shape.blocks * kGapWarps;
      begin(group);  // under way while the last one is finished
      finish_group(done);
    }
  }

 private:
  struct Chunk {
    uint2 values[kAhead];
    uint32_t gaps[kAhead];
  };

  // The group's first chunk is on its way.
  __device__ __forceinline__ void begin(int group) {
    left_ = 0;
    if (group >= w_.layout.groups()) return;
    const int32_t* place = call_.index + span_ * int64_t(w_.layout.groups()) + group;
    const uint8_t* from = call_.slabs + int64_t(place[0]) * kGapUnit;
    values_ = from + GapRows::values_at(0, lane_);
    gaps_ = from + GapRows::gaps_at(0, lane_);
    left_ = (place[1] - place[0] - 1) / GapRows::step_units();
    slot_ = *reinterpret_cast<const uint16_t*>(from + GapRows::start_at(lane_)) * int(sizeof(X));
    load();
  }

  // The next chunk; codes without a value after the last step.
  __device__ __forceinline__ void load() {
    constexpr int kStep = GapRows::step_units() * kGapUnit;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      next_.values[i] = make_uint2(0, 0);
      next_.gaps[i] = 0;
      if (i < left_) {
        next_.values[i] = ptx::load_once_8(values_ + i * kStep);
        next_.gaps[i] = ptx::load_once_4(gaps_ + i * kStep);
      }
    }
    values_ += kAhead * kStep;
    gaps_ += kAhead * kStep;
  }

  __device__ __forceinline__ void fill_slots() const {
    const int columns = w_.layout.columns(span_), first = span_ * w_.layout.width;
#pragma unroll 4
    for (int slot = threadIdx.x; slot <= columns; slot += kGapWarps * kWarp) {
      uint16_t x[TOKENS];
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) {
        x[t] = slot && t < call_.m ? call_.x[t * call_.x_stride + first + slot - 1] : uint16_t(0);
      }
      slots_[slot].set(x);
    }
  }

  __device__ __forceinline__ void sum_group() {
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) sums_[t] = 0.0f;
#pragma unroll 1
    while (left_ > 0) {
      const Chunk now = next_;
      left_ -= kAhead;
      load();
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
#pragma unroll
        for (int j = 0; j < kGapValues; ++j) {
          slot_ += int(now.gaps[i] >> 8 * j & 0xff) * int(sizeof(X));
          const uint32_t pair = j < 2 ? now.values[i].x : now.values[i].y;
          const float w = ptx::to_float<Kind>(uint16_t(pair >> j % 2 * 16));
          float x[TOKENS];
          reinterpret_cast<const X*>(reinterpret_cast<const uint8_t*>(slots_) + slot_)->get(x);
#pragma unroll
          for (int t = 0; t < TOKENS; ++t) sums_[t] += w * x[t];
        }
      }
    }
  }

  // Lane 8 r + t ends with token t of row r.
  __device__ __forceinline__ void finish_group(int group) const {
    float mine = 0.0f;
    const int token = lane_ % kGapLanes, in_group = lane_ / kGapLanes;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      float sum = sums_[t];
#pragma unroll
      for (int away = 1; away < kGapLanes; away *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, away);
      if (token == t) mine = sum;
    }
    const int row = w_.order[group * kGapRows + in_group];
    const bool live = row >= 0 && token < call_.m;
    if (w_.layout.spans > 1 && !add_spans(group, in_group, token, mine)) return;
    if (!live) return;
    if (mine != mine) mine = exact_gaps<Kind>(call_, w_, group, in_group, token);
    finish<Kind>(call_, mine, row, token);
  }

  // Leaves this span's sums for the warp that comes last to the group, which gets them all, in the order of the spans.
  __device__ __forceinline__ bool add_spans(int group, int in_group, int token, float& mine) const {
    float* parts = reinterpret_cast<float*>(call_.scratch);
    const int64_t stride = int64_t(w_.layout.groups()) * kGapRows * TOKENS;
    float* at = parts + (group * kGapRows + in_group) * TOKENS + token;
    if (token < TOKENS) at[span_ * stride] = mine;
    __threadfence();
    __syncwarp();
    const unsigned others = unsigned(w_.layout.spans) - 1;
    unsigned before = 0;
    if (lane_ == 0) before = atomicInc(call_.counters + group, others);  // the last one makes it zero again
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before != others) return false;
    __threadfence();
    mine = 0.0f;
    if (token >= TOKENS) return true;
    for (int span = 0; span < w_.layout.spans; ++span) mine += __ldcg(at + span * stride);
    return true;
  }

  const DecodeCall& call_;
  const GapWeight& w_;
  const int lane_, span_;
  X* const slots_;
  const uint8_t *values_ = nullptr, *gaps_ = nullptr;  // of the chunk after the next one
  int left_ = 0;                                       // steps from the next chunk on
  int slot_ = 0;                                       // where the lane stands, in bytes
  Chunk next_;
  float sums_[TOKENS];
};

}  // namespace ajour::cuda
