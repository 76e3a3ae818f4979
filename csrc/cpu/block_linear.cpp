// Three regimes by rows of x: few rows stream the weight once and read x where it lies; more pack x for all threads,
// which share the panels by stored columns; many give each thread its own tokens, packed in pieces that stay in its L2
// cache.
#include "cpu/block_linear.h"

#include "cpu/block_tiles.h"
#include "cpu/tile_sizes.h"
#include "memory/parallel.h"
#include "memory/scratch.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

constexpr int64_t kFewTokens = 8;
// Bytes of x that a thread packs at once: a share of 1 MiB of L2 while the weight comes from L3 again for each piece, a
// smaller one where panels are narrow and read columns from anywhere (4x1 at 10 %, 512 tokens, 4096x1024, bfloat16: 227
// GFLOP/s, with more 180), all that pays where the weight comes from memory (4096x4096, 32x32 at 50 %: 207, else 158).
constexpr int64_t kPackedBytes = 640 << 10, kPackedBytesForNarrow = 256 << 10, kPackedBytesForLarge = 1536 << 10;
constexpr int64_t kLargeWeight = 12 << 20, kTileBytes = 640 << 10;  // of one tile with tokens in lanes: it stays in L2
constexpr int kGroupRows = 16;  // rows of y that are finished together: a cache line of floats
constexpr int kPanelVecs = 2;   // vectors of rows that share each broadcast of x

// Vectors of tokens in a tile against `rows` rows, an even number where columns come in loose pairs. Six for four rows
// would fit the registers, but a wider tile of x stays less in the L1 cache: 141 for 150 GFLOP/s (Zen 5, 4x1 blocks).
constexpr int most_vecs(int rows, bool loose) { return rows == kMostRows ? (loose ? 2 : 3) : 4; }

// Stored is the type of weight, x and y; Form says how a word of packed x and weight is multiplied. Where Stored is not
// what Form multiplies, panels are turned into floats first (kConverts).
template <class Stored, class Form, bool kLoose = false>
class Product {
 public:
  explicit Product(const BlockLinear& call)
      : call_(call),
        w_(call.weight),
        x_(static_cast<const Stored*>(call.x)),
        to_{{static_cast<const Stored*>(call.bias), static_cast<const Stored*>(call.residual), call.weight.n,
             call.activation},
            static_cast<Stored*>(call.y),
            call.weight.n} {
    const int64_t columns = w_.loose ? w_.k + 1 : divide_up(w_.k, w_.cols) * w_.cols;
    words_ = divide_up(columns, kLoose ? 2 : Form::kColumns);
    const int rows = w_.panel_rows < kMostRows ? w_.panel_rows : kMostRows;
    vecs_ = most_vecs(rows, kLoose);
    if (rows == kMostRows && !kLoose) vecs_ = int(min64(vecs_, max64(2, kTileBytes / (words_ * kLanes * 4))));
    group_ = kRowsInLanes() ? 1 : max64(1, kGroupRows / w_.panel_rows);
    groups_ = divide_up(w_.all_panels(), group_);
    if (kConverts) {
      for (int64_t i = 0; i < w_.block_rows(); i++) longest_ = max64(longest_, w_.columns(i));
      longest_ *= group_ * w_.panel_rows;
    }
  }

  void run() {
    const int64_t stored = w_.values();
    const int64_t threads = stored * max64(call_.m, 8) < kWorthThreads ? 1 : thread_count();
    if (call_.m <= kFewTokens && !kLoose && w_.panel_rows % kLanes == 0) {
      few_tokens(threads);
    } else if (threads > 1 && !splits_evenly(threads)) {
      share_panels(threads);
    } else {
      share_tokens(threads);
    }
    if (out_of_memory_) refuse_memory();
  }

 private:
  static constexpr bool kConverts = sizeof(Stored) == 2 && Form::kColumns == 1 && !kLoose;
  static constexpr int kStep = kLoose ? 2 * kLanes : kLanes;  // tokens in lanes: a tile's width is a multiple

  bool kRowsInLanes() const { return !kLoose && w_.panel_rows == 32; }

  // ---- work ----

  // Panels before group `group`, weighed by what they cost: stored columns, and one tile to write.
  int64_t cost_before(int64_t group) const {
    const int64_t panel = min64(group * group_, w_.all_panels()), row = panel / w_.panels;
    if (row == w_.block_rows()) return w_.columns_before(row) * w_.panels + 16 * panel;
    return w_.columns_before(row) * w_.panels + w_.columns(row) * (panel % w_.panels) + 16 * panel;
  }

  int64_t group_at(int64_t cost) const {
    return first_at(cost, groups_, [this](int64_t group) { return cost_before(group); });
  }

  // Runs body(first group, last group) on shares of equal cost.
  template <class Body>
  void over_groups(int64_t threads, const Body& body) {
    const int64_t cost = cost_before(groups_);
    parallel_for(0, cost, divide_up(cost, threads),
                 [&](int64_t first, int64_t last) { body(group_at(first), last == cost ? groups_ : group_at(last)); });
  }

  // Whether equal shares of tokens keep the threads within a tenth of each other.
  bool splits_evenly(int64_t threads) const {
    const int64_t step = kRowsInLanes() ? 4 : kStep, share = divide_up(divide_up(call_.m, step), threads) * step;
    return call_.m >= 96 && share * threads * 9 <= call_.m * 10;
  }

  // ---- x ----

  Tiles tiles(int64_t first, int64_t count) const {
    const bool rows_in_lanes = kRowsInLanes();
    return cut_into_tiles(first, count, rows_in_lanes ? kTokens : vecs_ * kLanes, words_, rows_in_lanes, kStep);
  }

  // Tokens whose packed form fits the budget: at least one tile.
  int64_t tokens_at_once() const {
    const Tiles one = tiles(0, 1);
    const bool is_large = w_.values() * int64_t(sizeof(Stored)) > kLargeWeight, is_narrow = w_.panel_rows < kMostRows;
    const int64_t bytes = is_large ? kPackedBytesForLarge : is_narrow ? kPackedBytesForNarrow : kPackedBytes;
    return max64(1, bytes / (one.stride * 4)) * one.width;
  }

  void pack(const Tiles& t, int64_t tile, uint32_t* packed) const {
    const int64_t first = t.first + tile * t.width, last = first + t.tokens_in(tile) - 1;
    const int width = t.width_of(tile);
    uint32_t* out = packed + tile * t.stride;
    for (int g = 0; g < width; g += kStep) {
      const Stored* rows[kStep];
      for (int i = 0; i < kStep; i++) rows[i] = x_ + min64(first + g + i, last) * call_.x_stride;
      if constexpr (kLoose) {
        pack_loose_tokens(rows, w_.k, w_.k + 1, out + g / 2, width);
      } else {
        pack_tokens<Form>(rows, w_.k, words_, out + g, width);
      }
    }
  }

  // ---- the weight ----

  struct Panel {
    Strip strip;
    int64_t row;      // of the weight
    int rows;         // inside the weight; 0 or less where the panel lies beyond it
    int64_t columns;  // stored
  };

  void find_panel(int64_t number, float* converted, Panel& p) const {
    const int64_t block_row = w_.panels == 1 ? number : number / w_.panels;
    const int index = int(number - block_row * w_.panels);
    const int64_t first = w_.offsets[block_row], units_per_block = w_.loose ? w_.cols : 1;
    p.row = block_row * w_.rows + int64_t(index) * w_.panel_rows;
    p.rows = int(min64(min64(w_.panel_rows, w_.rows - index * w_.panel_rows), w_.n - p.row));
    p.columns = w_.columns(block_row);
    const Stored* values = static_cast<const Stored*>(call_.values) + w_.values_before(block_row, index);
    p.strip.weights = reinterpret_cast<const uint32_t*>(values);
    p.strip.starts = w_.starts + first * units_per_block;
    p.strip.units = (w_.offsets[block_row + 1] - first) * units_per_block;
    p.strip.unit = kLoose ? 1 : w_.unit / Form::kColumns;
    p.strip.rows = w_.panel_rows;
    p.strip.zero_column = int32_t(w_.k);
    if (kConverts && p.rows > 0) {
      convert(values, p.columns, converted);
      p.strip.weights = reinterpret_cast<const uint32_t*>(converted);
    }
  }

  // Fetches the next group's values in the course of so many words.
  Ahead ahead_of(int64_t group, int64_t words) const {
    const int64_t first = w_.values_before((group + 1) * group_), last = w_.values_before((group + 2) * group_);
    const int64_t bytes = (last - first) * int64_t(sizeof(Stored));
    return {static_cast<const char*>(call_.values) + first * int64_t(sizeof(Stored)),
            divide_up(bytes, max64(1, words))};
  }

  // Pairs of columns [columns / 2][rows][2] to floats [columns][rows].
  void convert(const Stored* values, int64_t columns, float* out) const {
    const int rows = w_.panel_rows;
    for (int64_t column = 0; column < columns; column += 2, values += 2 * rows, out += 2 * rows) {
      for (int r = 0; r < rows; r += kLanes) {
        const int count = int(min64(kLanes, rows - r));
        const Words pairs = load(reinterpret_cast<const uint32_t*>(values) + r, count);
        const Halves low = __builtin_convertvector(pairs & 0xffffu, Halves);
        const Halves high = __builtin_convertvector(pairs >> 16, Halves);
        store(out + r, widened(low), count);
        store(out + rows + r, widened(high), count);
      }
    }
  }
  static Vec widened(Halves h) { return sizeof(Stored) == 2 && kIsBf16 ? from_bf16(h) : from_fp16(h); }
  static constexpr bool kIsBf16 = __is_same(Stored, BFloat16);

  // ---- products ----

  template <int kWidth>
  void rows_tile(const Panel& p, const uint32_t* x, Ahead& next, int64_t token, int tokens) const {
    for (int row = 0; row < p.rows; row += kPanelVecs * kLanes) {
      Vec sums[kPanelVecs][kWidth];
      to_.fetch(token, tokens, p.row + row, kPanelVecs * kLanes);
      rows_in_lanes<Form, kPanelVecs, kWidth>(p.strip, row, x, next, sums);
      write_rows(sums, to_, token, tokens, p.row + row, p.rows - row);
    }
  }

  void rows_group(int64_t group, const Tiles& t, const uint32_t* packed, float* converted) const {
    Panel p;
    find_panel(group, converted, p);
    Ahead next = ahead_of(group, p.columns / Form::kColumns * (w_.panel_rows / (kPanelVecs * kLanes)) * t.number);
    for (int64_t tile = 0; tile < t.number; tile++) {
      const uint32_t* x = packed + tile * t.stride;
      const int64_t token = t.first + tile * t.width;
      const int width = t.width_of(tile), tokens = t.tokens_in(tile);
      if (width == kTokens) {
        rows_tile<kTokens>(p, x, next, token, tokens);
      } else if (width == kThird) {
        rows_tile<kThird>(p, x, next, token, tokens);
      } else {
        rows_tile<2 * kThird>(p, x, next, token, tokens);
      }
    }
  }

  template <int kRows, int kVecs>
  void tokens_tile(const Strip& s, const uint32_t* x, Ahead& next, int vecs, float* sums) const {
    if constexpr (kVecs > (kLoose ? 2 : 1)) {
      if (vecs < kVecs) return tokens_tile<kRows, kVecs - (kLoose ? 2 : 1)>(s, x, next, vecs, sums);
    }
    for (int row = 0; row < w_.panel_rows; row += kRows, sums += kRows * kVecs * kLanes) {
      if constexpr (kLoose) {
        loose_tokens_in_lanes<kRows, kVecs>(s, row, x, next, sums);
      } else {
        tokens_in_lanes<Form, kRows, kVecs>(s, row, x, next, sums);
      }
    }
  }

  void tokens_panel(const Strip& s, const uint32_t* x, Ahead& next, int vecs, float* sums) const {
    switch (w_.panel_rows) {
      case 1:
        return tokens_tile<1, most_vecs(1, kLoose)>(s, x, next, vecs, sums);
      case 2:
        return tokens_tile<2, most_vecs(2, kLoose)>(s, x, next, vecs, sums);
      case 4:
        return tokens_tile<4, most_vecs(4, kLoose)>(s, x, next, vecs, sums);
      default:
        return tokens_tile<kMostRows, most_vecs(kMostRows, kLoose)>(s, x, next, vecs, sums);
    }
  }

  void tokens_group(int64_t group, const Tiles& t, const uint32_t* packed, float* converted) const {
    alignas(64) float sums[(kGroupRows + 32) * most_vecs(1, kLoose) * kLanes];
    const int64_t first = group * group_, last = min64(first + group_, w_.all_panels());
    Panel panels[kGroupRows];
    int number = 0;
    int64_t columns = 0;
    for (int64_t i = first; i < last; i++) {
      Panel& p = panels[number];
      find_panel(i, converted, p);
      number += p.rows > 0;
      columns += p.columns;
      converted += p.columns * w_.panel_rows;
    }
    if (!number) return;
    const int64_t row = panels[0].row, rows = panels[number - 1].row + panels[number - 1].rows - row;
    const int parts = w_.panel_rows > kMostRows ? w_.panel_rows / kMostRows : 1;
    Ahead next = ahead_of(group, columns / (kLoose ? 2 : Form::kColumns) * parts * t.number);
    for (int64_t tile = 0; tile < t.number; tile++) {
      const int width = t.width_of(tile);
      const int tokens = t.tokens_in(tile), share = is_large_ ? int(divide_up(tokens, number)) : 0;
      for (int i = 0; i < number; i++) {
        to_.fetch(t.first + tile * t.width + i * share, int(min64(share, tokens - i * share)), row, int(rows));
        tokens_panel(panels[i].strip, packed + tile * t.stride, next, width / kLanes,
                     sums + (panels[i].row - row) * width);
      }
      write_tokens(sums, width, to_, t.first + tile * t.width, tokens, row, int(rows));
    }
  }

  void sweep(int64_t first, int64_t last, const Tiles& t, const uint32_t* packed, float* converted) const {
    for (int64_t group = first; group < last; group++) {
      if (kRowsInLanes()) {
        rows_group(group, t, packed, converted);
      } else {
        tokens_group(group, t, packed, converted);
      }
    }
  }

  // ---- regimes ----

  void share_tokens(int64_t threads) {
    const int64_t step = kRowsInLanes() ? 4 : kStep, steps = divide_up(call_.m, step), at_once = tokens_at_once();
    parallel_for(0, steps, divide_up(steps, threads), [&](int64_t first_step, int64_t last_step) {
      const int64_t first = first_step * step, last = min64(last_step * step, call_.m);
      const int64_t words = tiles(0, min64(at_once, last - first)).number * tiles(0, 1).stride;
      uint32_t* packed = static_cast<uint32_t*>(thread_scratch((words + in_lines(longest_)) * 4));
      if (!packed) return void(out_of_memory_ = true);
      for (int64_t token = first; token < last; token += at_once) {
        const Tiles t = tiles(token, min64(at_once, last - token));
        for (int64_t tile = 0; tile < t.number; tile++) pack(t, tile, packed);
        sweep(0, groups_, t, packed, reinterpret_cast<float*>(packed + words));
      }
    });
  }

  void share_panels(int64_t threads) {
    const int64_t at_once = tokens_at_once();
    const int64_t words = tiles(0, min64(at_once, call_.m)).number * tiles(0, 1).stride;
    uint32_t* packed = static_cast<uint32_t*>(call_scratch(words * 4));
    if (!packed) return void(out_of_memory_ = true);
    for (int64_t token = 0; token < call_.m; token += at_once) {
      const Tiles t = tiles(token, min64(at_once, call_.m - token));
      parallel_for(0, t.number, divide_up(t.number, threads), [&](int64_t first, int64_t last) {
        for (int64_t tile = first; tile < last; tile++) pack(t, tile, packed);
      });
      over_groups(threads, [&](int64_t first, int64_t last) {
        float* converted = kConverts ? static_cast<float*>(thread_scratch(in_lines(longest_) * 4)) : nullptr;
        if (kConverts && !converted) return void(out_of_memory_ = true);
        sweep(first, last, t, packed, converted);
      });
    }
  }

  template <int kWidth>
  void few_tokens_panel(const Panel& p, const WordAnywhere* const* rows) const {
    constexpr int kVecs = 2;
    const WordAnywhere* x[kWidth];
    for (int t = 0; t < kWidth; t++) x[t] = rows[t];
    int row = 0;
    for (; row + kLanes < p.rows; row += kVecs * kLanes) {
      Vec sums[kVecs][kWidth];
      rows_in_lanes_direct<Form, kVecs, kWidth, kWidth == 1 ? 4 : kWidth == 8 ? 1 : 2>(p.strip, row, x, sums);
      write_rows(sums, to_, 0, int(call_.m), p.row + row, p.rows - row);
    }
    if (row < p.rows) {
      Vec sums[1][kWidth];
      rows_in_lanes_direct<Form, 1, kWidth, kWidth == 1 ? 8 : kWidth == 8 ? 2 : 4>(p.strip, row, x, sums);
      write_rows(sums, to_, 0, int(call_.m), p.row + row, p.rows - row);
    }
  }

  // Rows of words, in x itself where a row holds every column that the kernels read, else in a padded copy.
  bool few_rows(const WordAnywhere* (&rows)[kFewTokens]) {
    const bool in_place = !kConverts && w_.k % w_.cols == 0;
    const int64_t stride = in_lines(words_ + kLanes);
    uint32_t* copy = in_place ? nullptr : static_cast<uint32_t*>(call_scratch(call_.m * stride * 4));
    if (!in_place && !copy) return false;
    for (int64_t t = 0; t < kFewTokens; t++) {
      const int64_t token = min64(t, call_.m - 1);
      const Stored* row = x_ + token * call_.x_stride;
      rows[t] = in_place ? reinterpret_cast<const WordAnywhere*>(row) : copy + token * stride;
      if (in_place || t >= call_.m) continue;
      for (int64_t word = 0; word < words_; word += kLanes)
        store(copy + token * stride + word, Form::read(row, word, w_.k));
    }
    return true;
  }

  void few_tokens(int64_t threads) {
    const WordAnywhere* rows[kFewTokens];
    if (!few_rows(rows)) return void(out_of_memory_ = true);
    over_groups(threads, [&](int64_t first, int64_t last) {
      float* converted = kConverts ? static_cast<float*>(thread_scratch(in_lines(longest_) * 4)) : nullptr;
      if (kConverts && !converted) return void(out_of_memory_ = true);
      for (int64_t i = first * group_; i < min64(last * group_, w_.all_panels()); i++) {
        Panel p;
        find_panel(i, converted, p);
        if (call_.m == 1) {
          few_tokens_panel<1>(p, rows);
        } else if (call_.m == 2) {
          few_tokens_panel<2>(p, rows);
        } else if (call_.m <= 4) {
          few_tokens_panel<4>(p, rows);
        } else {
          few_tokens_panel<8>(p, rows);
        }
      }
    });
  }

  const BlockLinear& call_;
  const BlockPanels& w_;
  const Stored* x_;
  Target<Stored> to_;
  int64_t words_;           // of a packed token
  int vecs_;                // vectors of tokens in a tile, where tokens lie in lanes
  int64_t group_, groups_;  // panels in a group, groups
  const bool is_large_ = call_.m * w_.n * int64_t(sizeof(Stored)) > (1 << 20);  // y, which L2 does not hold
  int64_t longest_ = 0;                                                         // floats of a group's converted panels
  volatile bool out_of_memory_ = false;
};

}  // namespace

void block_linear(const BlockLinear& call) {
  switch (call.dtype) {
    case 0:
      return Product<float, Floats>(call).run();
    case 1:
#if defined(__AVX512BF16__)
      if (!call.weight.loose) return Product<BFloat16, Pairs>(call).run();
      if (call.m > kFewTokens || call.weight.panel_rows % kLanes != 0)
        return Product<BFloat16, Floats, true>(call).run();
#endif
      return Product<BFloat16, Floats>(call).run();
    default:
      return Product<Float16, Floats>(call).run();
  }
}

}  // namespace ajour::cpu::AJOUR_ISA
