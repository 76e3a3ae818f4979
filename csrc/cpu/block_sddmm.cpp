// Tokens go in chunks: x of a chunk is packed once, block column by block column, so that a block's part of it streams
// through the L1 cache; dy, of which single elements are broadcast, is read where it lies, if it is float32 and no
// block overhangs it, else packed as well. Then each thread takes its own blocks. A block's products are always added
// up in the same order, whatever the number of threads.
#include "cpu/block_sddmm.h"

#include <cstdlib>

#include "cpu/tile_sizes.h"
#include "cpu/token_tiles.h"
#include "memory/parallel.h"
#include "memory/scratch.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

// Of a chunk: x alone, or dy as well. They are read again for every live block.
constexpr int64_t kPackedBytes = 1 << 20, kPackedBytesOfBoth = 4 << 20;
constexpr int64_t kPieceWords = 8192;  // of a block's dy and x together: 32 KiB of the L1 cache
constexpr int64_t kMostSteps = 128;    // that registers add up before they join a total: rounding
constexpr int64_t kRun = 16;           // blocks of one row that share a piece of dy
constexpr int kVecs = 2;
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kRows = 8;  // 16 sums of 32 registers
#else
constexpr int kRows = 4;  // 8 of 16
#endif

// One step along the tokens is one token as floats ...
template <class T>
struct Single {
  static constexpr int kTokens = 1;
  AJOUR_INLINE_MEMBER static Words read(const T* row, int64_t stride, int64_t tokens, int count) {
    (void)stride, (void)tokens;
    return as_words(count == kLanes ? load(row) : load(row, count));
  }
  AJOUR_INLINE_MEMBER static Vec multiply_add(Words a, Words b, Vec sum) { return Floats::multiply_add(a, b, sum); }
};

// ... or two as a pair of bf16; an odd last one is paired with zero.
struct Double {
  static constexpr int kTokens = 2;
  AJOUR_INLINE_MEMBER static Words read(const BFloat16* row, int64_t stride, int64_t tokens, int count) {
    const Words low = widen(load_halves(row, count));
    return tokens < 2 ? low : low | (widen(load_halves(row + stride, count)) << 16);
  }
  AJOUR_INLINE_MEMBER static Vec multiply_add(Words a, Words b, Vec sum) { return dot_pairs(sum, a, b); }
};

// [m, width] cut into panels of `side` columns, read where it lies or packed [panels][steps][padded].
template <class T>
struct Operand {
  const T* data;
  int64_t stride, width;
  int side, padded;
  int64_t panels;
  bool in_place;
  // of the chunk at hand, in words
  const uint32_t* words;
  int64_t of_panel, of_step;

  int64_t packed_words() const { return in_place ? 0 : panels * padded; }  // of a step

  AJOUR_INLINE_MEMBER const uint32_t* at(int64_t panel, int64_t step) const {
    return words + panel * of_panel + step * of_step;
  }
};

template <class T, class Form>
class Sampled {
 public:
  explicit Sampled(const BlockSddmm& call) : call_(call) {
    const Operand<T> dy = operand(call.dy, call.dy_stride, call.n, call.rows);
    const Operand<T> x = operand(call.x, call.x_stride, call.k, call.cols);
    turned_ = call.cols < kLanes && call.rows > call.cols;  // the longer side lies in lanes
    narrow_ = turned_ ? x : dy, wide_ = turned_ ? dy : x;
    wide_.padded = int(divide_up(wide_.side, kLanes) * kLanes);
    // what is broadcast costs no more where it lies than packed; lanes that lie apart do (4096x1024: 2.4 for 3.2 ms)
    narrow_.in_place = sizeof(T) == 4 && narrow_.width % narrow_.side == 0;
    size_ = int64_t(call.rows) * call.cols;
    piece_ = max64(16, min64(kMostSteps, kPieceWords / (narrow_.padded + wide_.padded)));
  }

  void run() {
    const int64_t words = narrow_.packed_words() + wide_.packed_words();  // of a step
    const int64_t all = divide_up(call_.m, Form::kTokens);
    const int64_t bytes = narrow_.in_place ? kPackedBytes : kPackedBytesOfBoth;
    const int64_t chunk = min64(all, max64(1, bytes / (words * 4 * piece_)) * piece_);
    uint32_t* packed = static_cast<uint32_t*>(call_scratch(chunk * words * 4));
    float* totals = call_.is_float ? static_cast<float*>(call_.gradient) : nullptr;
    if (!call_.is_float && chunk < all) totals = static_cast<float*>(std::malloc(call_.live * size_ * 4));
    if (!packed || (!call_.is_float && chunk < all && !totals)) refuse_memory();
    for (int64_t first = 0; first < all && !out_of_memory_; first += chunk) {
      const int64_t steps = min64(chunk, all - first);
      lay_out(narrow_, first, steps, packed);
      lay_out(wide_, first, steps, packed + narrow_.packed_words() * steps);
      parallel_for(0, call_.live, max64(1, (1 << 19) / (size_ * steps)), [&](int64_t begin, int64_t end) {
        blocks(begin, end, steps, totals, first == 0, first + steps == all);
      });
    }
    if (!call_.is_float) std::free(totals);
    if (out_of_memory_) refuse_memory();
  }

 private:
  static Operand<T> operand(const void* data, int64_t stride, int64_t width, int side) {
    return {static_cast<const T*>(data), stride, width, side, side, divide_up(width, side), false, nullptr, 0, 0};
  }

  // Steps [first, first + steps) of an operand, packed into `room` or as they are.
  void lay_out(Operand<T>& to, int64_t first, int64_t steps, uint32_t* room) const {
    if (to.in_place) {
      to.words = reinterpret_cast<const uint32_t*>(to.data + first * to.stride);
      to.of_panel = to.side, to.of_step = to.stride;
      return;
    }
    to.words = room, to.of_panel = steps * to.padded, to.of_step = to.padded;
    pack(to, first, steps, room);
  }

  // A few panels at a time: whole cache lines of x, and few enough streams to write.
  void pack(const Operand<T>& to, int64_t first, int64_t steps, uint32_t* room) const {
    const int64_t together = max64(1, 256 / to.side), groups = divide_up(to.panels, together);
    parallel_for(0, groups, max64(1, (1 << 15) / (256 * steps)), [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; g++) {
        for (int64_t step = 0; step < steps; step++) {
          const int64_t token = (first + step) * Form::kTokens, tokens = call_.m - token;
          const T* row = to.data + token * to.stride;
          for (int64_t p = g * together; p < min64(to.panels, (g + 1) * together); p++) {
            pack_row(to, row, p, tokens, room + (p * steps + step) * to.padded);
          }
        }
      }
    });
  }

  void pack_row(const Operand<T>& to, const T* row, int64_t panel, int64_t tokens, uint32_t* out) const {
    const int64_t column = panel * to.side;
    const int64_t left = min64(to.side, to.width - column);
    for (int i = 0; i < to.padded; i += kLanes) {
      const int count = int(max64(0, min64(kLanes, left - i))), room = to.padded - i < kLanes ? to.padded - i : kLanes;
      const Words words = count ? Form::read(row + column + i, to.stride, tokens, count) : Words{};
      if (room == kLanes) {
        store(out + i, words);
      } else {
        store(out + i, words, room);
      }
    }
  }

  void blocks(int64_t begin, int64_t end, int64_t steps, float* totals, bool is_first, bool is_last) {
    float* own = totals ? nullptr : static_cast<float*>(thread_scratch(kRun * size_ * 4));
    if (!totals && !own) return void(out_of_memory_ = true);
    while (begin < end) {
      int64_t last = begin + 1;
      while (last < min64(end, begin + kRun) && call_.block_rows[last] == call_.block_rows[begin]) last++;
      float* sums = totals ? totals + begin * size_ : own;
      const bool keeps = call_.is_float && call_.accumulate;
      for (int64_t step = 0; step < steps; step += piece_) {
        for (int64_t p = begin; p < last; p++) {
          block(p, step, steps, sums + (p - begin) * size_, keeps || !is_first || step > 0);
        }
      }
      if (is_last) {
        for (int64_t p = begin; p < last; p++) clear_overhang(p, sums + (p - begin) * size_);
      }
      if (is_last && !call_.is_float) finish(begin * size_, (last - begin) * size_, sums);
      begin = last;
    }
  }

  // Zeros beyond the weight, where Inf or NaN of one operand met the padding of the other.
  void clear_overhang(int64_t p, float* sums) const {
    const int64_t rows = min64(call_.rows, call_.n - int64_t(call_.block_rows[p]) * call_.rows);
    const int64_t cols = min64(call_.cols, call_.k - int64_t(call_.columns[p]) * call_.cols);
    if (rows == call_.rows && cols == call_.cols) return;
    for (int64_t r = 0; r < call_.rows; r++) {
      for (int64_t c = r < rows ? cols : 0; c < call_.cols; c++) sums[r * call_.cols + c] = 0;
    }
  }

  // Rounds totals to the gradient's own type.
  void finish(int64_t first, int64_t count, const float* sums) const {
    T* to = static_cast<T*>(call_.gradient) + first;
    for (int64_t i = 0; i < count; i += kLanes) {
      const int lanes = int(min64(kLanes, count - i));
      Vec total = load(sums + i, lanes);
      if (call_.accumulate) total = total + load(to + i, lanes);
      store(to + i, total, lanes);
    }
  }

  void block(int64_t p, int64_t step, int64_t steps, float* sums, bool add) const {
    const int64_t row = call_.block_rows[p], column = call_.columns[p], length = min64(piece_, steps - step);
    const uint32_t* narrow = narrow_.at(turned_ ? column : row, step);
    const uint32_t* wide = wide_.at(turned_ ? row : column, step);
    for (int lane = 0; lane < wide_.side; lane += kVecs * kLanes) {
      if (wide_.side - lane > kLanes) {
        columns<kVecs>(narrow, wide + lane, lane, length, sums, add);
      } else {
        columns<1>(narrow, wide + lane, lane, length, sums, add);
      }
    }
  }

  template <int kWide>
  void columns(const uint32_t* narrow, const uint32_t* wide, int lane, int64_t length, float* sums, bool add) const {
    int row = 0;
    for (; row + kRows <= narrow_.side; row += kRows) tile<kRows, kWide>(narrow, wide, row, lane, length, sums, add);
    for (; row + 2 <= narrow_.side; row += 2) tile<2, kWide>(narrow, wide, row, lane, length, sums, add);
    if (row < narrow_.side) tile<1, kWide>(narrow, wide, row, lane, length, sums, add);
  }

  template <int kTall, int kWide>
  AJOUR_INLINE_MEMBER void tile(const uint32_t* narrow, const uint32_t* wide, int row, int lane, int64_t length,
                                float* out, bool add) const {
    Vec sums[kTall][kWide];
    AJOUR_UNROLL for (int r = 0; r < kTall; r++) AJOUR_UNROLL for (int v = 0; v < kWide; v++) sums[r][v] = zero();
    narrow += row;
    const int64_t narrow_step = narrow_.of_step, wide_step = wide_.of_step;
    for (int64_t step = 0; step < length; step++, narrow += narrow_step, wide += wide_step) {
      Words values[kWide];
      AJOUR_UNROLL for (int v = 0; v < kWide; v++) values[v] = load(wide + v * kLanes);
      AJOUR_UNROLL for (int r = 0; r < kTall; r++) {
        const Words value = broadcast(narrow[r]);
        AJOUR_UNROLL for (int v = 0; v < kWide; v++) sums[r][v] = Form::multiply_add(value, values[v], sums[r][v]);
      }
    }
    AJOUR_UNROLL for (int r = 0; r < kTall; r++) AJOUR_UNROLL for (int v = 0; v < kWide; v++) {
      const int first = lane + v * kLanes, count = wide_.side - first < kLanes ? wide_.side - first : kLanes;
      if (turned_) {
        put_turned(sums[r][v], out + int64_t(first) * call_.cols + row + r, count, add);
      } else {
        put(sums[r][v], out + int64_t(row + r) * call_.cols + first, count, add);
      }
    }
  }

  AJOUR_INLINE_MEMBER static void put(Vec sum, float* out, int count, bool add) {
    if (count == kLanes) {
      store(out, add ? sum + load(out) : sum);
    } else if (count > 0) {
      store(out, add ? sum + load(out, count) : sum, count);
    }
  }

  // Lanes are rows of the block.
  void put_turned(Vec sum, float* out, int count, bool add) const {
    float lanes[kLanes];
    store(lanes, sum);
    for (int i = 0; i < count; i++, out += call_.cols) *out = add ? *out + lanes[i] : lanes[i];
  }

  const BlockSddmm& call_;
  Operand<T> narrow_, wide_;  // broadcast, and in lanes
  bool turned_;               // dy is the wide one
  int64_t size_, piece_;      // elements of a block; steps that a block takes at once
  volatile bool out_of_memory_ = false;
};

}  // namespace

void block_sddmm(const BlockSddmm& call) {
  switch (call.dtype) {
    case 0:
      return Sampled<float, Single<float>>(call).run();
    case 1:
      if constexpr (kHasDotPairs) return Sampled<BFloat16, Double>(call).run();
      return Sampled<BFloat16, Single<BFloat16>>(call).run();
    default:
      return Sampled<Float16, Single<Float16>>(call).run();
  }
}

}  // namespace ajour::cpu::AJOUR_ISA
