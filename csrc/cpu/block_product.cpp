// "Out" is the side of a block that y has, "in" the one that is summed over. Usually tokens lie in lanes: each weight
// is read where it stands and broadcast, whatever the order of a block's elements, so that one loop serves W and its
// transpose with two strides, and results are turned when they are written. Where a block's own rows fill vectors and
// are the out side, as in the transpose, these lie in lanes and tokens are broadcast, from where they stand: few blocks
// read each of them, too few to pay for packing (dx of 1536x384 in 32x32 blocks at 10 %, 128 tokens: 79 us, packed 91;
// Zen 5). Elsewhere x is packed in tiles of tokens.
#include "cpu/block_product.h"

#include "cpu/block_tiles.h"
#include "cpu/tile_sizes.h"
#include "memory/parallel.h"
#include "memory/scratch.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

// Bytes of x that are packed at once, as in block_linear.cpp: a share of L2 while the weight comes from L3 again for
// each piece, more where it comes from memory.
constexpr int64_t kPackedBytes = 320 << 10, kPackedBytesForLarge = 1536 << 10, kLargeWeight = 12 << 20;
// The same where x is read in place: the tokens at once are those that nothing was fetched ahead for at first, so fewer
// are better (dx of 1536x384 in 32x32 blocks at 10 %, 512 cold tokens: 341 us, with kPackedBytes 388; of 4096x4096: 8.3
// ms for 8.7; Zen 5).
constexpr int64_t kBytesForSmall = 80 << 10, kSmallWeight = 512 << 10, kBytesForLarge = 800 << 10;
// x in place is fetched a block ahead where it is larger than L2, unless the weight is what comes from afar (dx of
// 3072x768 in 32x32 blocks at 10 %, 512 cold tokens: 1.20 ms for 1.38; of 4096x1024: 2.2 for 2.5; of 768x768, 128 warm
// ones, it would cost 1 %; Zen 5).
constexpr int64_t kFetchedX = 1280 << 10, kMostFetchedWeight = 4 << 20;
constexpr int64_t kTileBytes = 640 << 10;  // of one tile, where a narrower one is no slower
constexpr int kOuts = 32;                  // columns of y that are finished together
constexpr int kLeastOuts = 16;             // a cache line of floats
constexpr int kMostVecs = 3;               // vectors of tokens in a tile
constexpr int kOutVecs = 2;                // vectors of outs that share each broadcast of x

// A live block: word (out, in) of it stands at weights[out * out_step + in * in_step].
struct Unit {
  const WordAnywhere* weights;
  int64_t first;  // word of x that its first "in" meets
};

struct Steps {
  int64_t out, in, count;  // count: words of a block along "in"
};

// out[o][token] of kRows outs and a tile of kVecs * kLanes tokens over some units; x: [words][tokens].
template <class Form, int kRows, int kVecs>
AJOUR_INLINE void add_units(const Unit* units, int64_t count, const Steps& steps, int64_t out, const uint32_t* x,
                            bool is_first, float* to) {
  constexpr int kTokens = kVecs * kLanes;
  Vec sums[kRows][kVecs];
  AJOUR_UNROLL for (int r = 0; r < kRows; r++) AJOUR_UNROLL for (int v = 0; v < kVecs; v++) sums[r][v] = zero();
  for (int64_t u = 0; u < count; u++) {
    const uint32_t* column = x + units[u].first * kTokens;
    const WordAnywhere* w = units[u].weights + out * steps.out;
    for (int64_t i = 0; i < steps.count; i++, column += kTokens, w += steps.in) {
      Words values[kVecs];
      AJOUR_UNROLL for (int v = 0; v < kVecs; v++) values[v] = load(column + v * kLanes);
      AJOUR_UNROLL for (int r = 0; r < kRows; r++) {
        const Words weight = broadcast(w[r * steps.out]);
        AJOUR_UNROLL for (int v = 0; v < kVecs; v++) sums[r][v] = Form::multiply_add(weight, values[v], sums[r][v]);
      }
    }
  }
  AJOUR_UNROLL for (int r = 0; r < kRows; r++) AJOUR_UNROLL for (int v = 0; v < kVecs; v++)
      add_to(to + r * kTokens + v * kLanes, sums[r][v], is_first);
}

// sums[v][t] of outs v * kLanes.. (lanes) and token t. The next block is fetched meanwhile, as the blocks of a column
// lie apart (dx of 4096x4096 in 32x32 blocks at 10 %, 512 tokens: 8.4 ms for 9.3; Zen 5), what it meets of x, and
// `ahead` of x.
template <class Form, int kWidth, class Tile>
AJOUR_INLINE void outs_in_lanes(const Unit* units, int64_t count, int64_t segment, const Steps& steps, int64_t out,
                                const Tile& x, Ahead& ahead, Vec (&sums)[kOutVecs][kWidth]) {
  alignas(64) float totals[kOutVecs * kWidth * kLanes];
  Ahead fetched = ahead;
  for (int64_t first = 0;; first += segment) {
    AJOUR_UNROLL for (int v = 0; v < kOutVecs; v++) AJOUR_UNROLL for (int t = 0; t < kWidth; t++) sums[v][t] = zero();
    const int64_t last = min64(count, first + segment);
    for (int64_t u = first; u < last; u++) {
      Tile column = x.from(units[u].first);
      const Tile behind = u + 1 < count ? x.from(units[u + 1].first) : x.next().from(units[0].first);
      const uint32_t* w = reinterpret_cast<const uint32_t*>(units[u].weights) + out;
      const uint32_t* next = reinterpret_cast<const uint32_t*>(units[u + 1 < count ? u + 1 : u].weights) + out;
      for (int64_t i = 0; i < steps.count; i++, column.advance(), w += steps.in) {
        Words weights[kOutVecs];
        fetched.fetch();
        behind.fetch(i);
        AJOUR_UNROLL for (int v = 0; v < kOutVecs; v++) __builtin_prefetch(next + i * steps.in + v * kLanes);
        AJOUR_UNROLL for (int v = 0; v < kOutVecs; v++) weights[v] = load(w + v * kLanes);
        AJOUR_UNROLL for (int t = 0; t < kWidth; t++) {
          const Words value = column.broadcast_token(t);
          AJOUR_UNROLL for (int v = 0; v < kOutVecs; v++) sums[v][t] =
              Form::multiply_add(weights[v], value, sums[v][t]);
        }
      }
    }
    ahead = fetched;
    if (last == count && !first) return;
    AJOUR_UNROLL for (int v = 0; v < kOutVecs; v++) AJOUR_UNROLL for (int t = 0; t < kWidth; t++)
        add_to(totals + (v * kWidth + t) * kLanes, sums[v][t], !first);
    if (last == count) break;
  }
  AJOUR_UNROLL for (int v = 0; v < kOutVecs; v++) AJOUR_UNROLL for (int t = 0; t < kWidth; t++) sums[v][t] =
      load(totals + (v * kWidth + t) * kLanes);
}

template <class Stored, class Form>
class Product {
 public:
  explicit Product(const BlockProduct& call)
      : call_(call),
        outs_(call.transposed ? call.cols : call.rows),
        ins_(call.transposed ? call.rows : call.cols),
        size_(int64_t(call.rows) * call.cols),
        out_width_(call.transposed ? call.k : call.n),
        in_width_(call.transposed ? call.n : call.k),
        to_{{static_cast<const Stored*>(call.bias), static_cast<const Stored*>(call.residual), out_width_,
             call.activation},
            static_cast<Stored*>(call.y),
            out_width_} {
    out_blocks_ = divide_up(out_width_, outs_);
    words_ = divide_up(in_width_, ins_) * ins_ / Form::kColumns;
    // a pair of neighbours along "in" is a word as it stands only in W itself
    copies_ = Form::kColumns == 2 ? call.transposed : sizeof(Stored) == 2;
    steps_ = {call.transposed ? 1 : call.cols, call.transposed ? call.cols : 1, ins_ / Form::kColumns};
    if (Form::kColumns == 2 && !call.transposed) steps_.out = call.cols / 2;
    lanes_are_outs_ = call.transposed && outs_ % (kOutVecs * kLanes) == 0;
    in_place_ = lanes_are_outs_ && sizeof(Stored) * Form::kColumns == 4 && in_width_ % ins_ == 0;
    vecs_ = int(min64(kMostVecs, max64(2, kTileBytes / (words_ * kLanes * 4))));
    together_ = lanes_are_outs_ ? 1 : max64(1, kLeastOuts / outs_);
    items_ = divide_up(out_blocks_, together_);
    const int64_t weight = offset(items_) * size_ * int64_t(sizeof(Stored));
    fetches_x_ = call.m * call.x_stride * int64_t(sizeof(Stored)) > kFetchedX && weight < kMostFetchedWeight;
    for (int64_t i = 0; i < items_; i++) longest_ = max64(longest_, offset(i + 1) - offset(i));
  }

  void run() {
    const int64_t live = call_.offsets[out_blocks_];
    const int64_t threads = live * size_ * max64(call_.m, 8) < kWorthThreads ? 1 : thread_count();
    const int64_t share = divide_up(divide_up(call_.m, kLanes), threads) * kLanes;
    if (threads > 1 && (call_.m < 96 || share * threads * 9 > call_.m * 10)) {
      share_outs(threads);
    } else {
      share_tokens(threads);
    }
    if (out_of_memory_) refuse_memory();
  }

 private:
  int64_t offset(int64_t item) const { return call_.offsets[min64(item * together_, out_blocks_)]; }

  // ---- x ----

  Tiles tiles(int64_t first, int64_t count) const {
    return cut_into_tiles(first, count, lanes_are_outs_ ? kTokens : vecs_ * kLanes, words_, lanes_are_outs_, kLanes);
  }

  int64_t tokens_at_once() const {  // at least one tile
    const Tiles one = tiles(0, 1);
    const int64_t weight = call_.offsets[out_blocks_] * size_ * int64_t(sizeof(Stored));
    int64_t bytes = weight > kLargeWeight ? kPackedBytesForLarge : kPackedBytes;
    if (in_place_ && weight > kLargeWeight) bytes = kBytesForLarge;
    if (in_place_ && weight < kSmallWeight) bytes = kBytesForSmall;
    return max64(1, bytes / (one.stride * 4)) * one.width;
  }

  // Whether a tile of tokens is read where it lies.
  bool stays(const Tiles& t, int64_t tile) const { return in_place_ && t.tokens_in(tile) == kTokens; }

  void pack(const Tiles& t, int64_t tile, uint32_t* packed) const {
    if (stays(t, tile)) return;
    const int64_t first = t.first + tile * t.width, last = first + t.tokens_in(tile) - 1;
    const int width = t.width_of(tile);
    for (int g = 0; g < width; g += kLanes) {
      const Stored* rows[kLanes];
      for (int i = 0; i < kLanes; i++) {
        rows[i] = static_cast<const Stored*>(call_.x) + min64(first + g + i, last) * call_.x_stride;
      }
      pack_tokens<Form>(rows, in_width_, words_, packed + tile * t.stride + g, width);
    }
  }

  // ---- the weight ----

  int64_t scratch_words() const {  // units of an item, and its blocks where they are copied
    return in_lines(longest_ * int64_t(sizeof(Unit) / 4)) + (copies_ ? in_lines(longest_ * size_ / Form::kColumns) : 0);
  }

  // Blocks of an item as units; returns where its copies would go on.
  void find_units(int64_t item, uint32_t* scratch) const {
    Unit* units = reinterpret_cast<Unit*>(scratch);
    uint32_t* copy = scratch + in_lines(longest_ * int64_t(sizeof(Unit) / 4));
    const int64_t first = offset(item), last = offset(item + 1);
    for (int64_t p = first; p < last; p++) {
      const int64_t b = call_.order ? call_.order[p] : p;
      const Stored* block = static_cast<const Stored*>(call_.blocks) + b * size_;
      Unit& unit = units[p - first];
      unit.first = int64_t(call_.places[b]) * steps_.count;
      unit.weights = reinterpret_cast<const WordAnywhere*>(block);
      if (!copies_) continue;
      if constexpr (Form::kColumns == 2) {
        copy_pairs(reinterpret_cast<const uint16_t*>(block), copy);
      } else if constexpr (sizeof(Stored) == 2) {
        copy_floats(block, copy);
      }
      unit.weights = copy;
      copy += size_ / Form::kColumns;
    }
  }

  // [rows][cols] of 16-bit floats to floats.
  void copy_floats(const Stored* block, uint32_t* out) const {
    for (int64_t i = 0; i < size_; i += kLanes) {
      const int count = int(min64(kLanes, size_ - i));
      store(out + i, as_words(load(block + i, count)), count);
    }
  }

  // [rows][cols] to pairs of rows [rows / 2][cols][2].
  void copy_pairs(const uint16_t* block, uint32_t* out) const {
    for (int row = 0; row < call_.rows; row += 2, block += 2 * call_.cols, out += call_.cols) {
      for (int c = 0; c < call_.cols; c += kLanes) {
        const int count = int(min64(kLanes, call_.cols - c));
        const Words low = widen(load_halves(block + c, count)),
                    high = widen(load_halves(block + call_.cols + c, count));
        store(out + c, low | (high << 16), count);
      }
    }
  }

  // ---- products ----

  template <int kRows, int kVecs>
  void outs(const Unit* units, int64_t count, int64_t out, const uint32_t* x, float* to) const {
    const int64_t segment = max64(1, kSegment / ins_);
    int64_t u = 0;
    do {
      add_units<Form, kRows, kVecs>(units + u, min64(segment, count - u), steps_, out, x, u == 0, to);
      u += segment;
    } while (u < count);
  }

  // Outs [first, last) of one out-block against a tile: sums [last - first][kVecs * kLanes].
  template <int kVecs>
  void strip(const Unit* units, int64_t count, int first, int last, const uint32_t* x, float* sums) const {
    constexpr int kWidth = kVecs * kLanes;
    int out = first;
    for (; out + kMostRows <= last; out += kMostRows)
      outs<kMostRows, kVecs>(units, count, out, x, sums + (out - first) * kWidth);
    if constexpr (kMostRows > 4) {
      if (out + 4 <= last) outs<4, kVecs>(units, count, out, x, sums + (out - first) * kWidth), out += 4;
    }
    for (; out < last; out++) outs<1, kVecs>(units, count, out, x, sums + (out - first) * kWidth);
  }

  void strip(const Unit* units, int64_t count, int first, int last, const uint32_t* x, int vecs, float* sums) const {
    if (vecs == 3) return strip<3>(units, count, first, last, x, sums);
    if (vecs == 2) return strip<2>(units, count, first, last, x, sums);
    return strip<1>(units, count, first, last, x, sums);
  }

  template <int kWidth, class Tile>
  void rows_tile(const Unit* units, int64_t count, int64_t first, const Tile& x, Ahead& ahead, int64_t token,
                 int tokens) const {
    const int outs = int(min64(outs_, out_width_ - first));
    for (int out = 0; out < outs; out += kOutVecs * kLanes) {
      Vec sums[kOutVecs][kWidth];
      to_.fetch(token, tokens, first + out, int(min64(kOutVecs * kLanes, outs - out)));
      outs_in_lanes<Form, kWidth>(units, count, max64(1, kSegment / ins_), steps_, out, x, ahead, sums);
      write_rows(sums, to_, token, tokens, first + out, outs - out);
    }
  }

  TileInPlace<kTokens> in_place(int64_t token) const {
    TileInPlace<kTokens> tile;
    tile.stride = call_.x_stride * int64_t(sizeof(Stored));
    tile.fetched = fetches_x_ ? kTokens : 0;
    const char* first = static_cast<const char*>(call_.x) + token * tile.stride;
    for (int i = 0; i < (kTokens + 2) / 3; i++) tile.at[i] = first + 3 * i * tile.stride;
    return tile;
  }

  // x of the tokens behind these, all of it by the time they are met; nothing where x is packed, which streams.
  Ahead behind(const Tiles& t) const {
    const int64_t stride = call_.x_stride * int64_t(sizeof(Stored)), next = t.first + t.count;
    const int64_t tokens = in_place_ ? max64(0, min64(t.count, call_.m - next)) : 0;
    const char* x = static_cast<const char*>(call_.x);
    const int64_t steps = call_.offsets[out_blocks_] * steps_.count * t.number * divide_up(outs_, kOutVecs * kLanes);
    return tokens ? Ahead{x + next * stride, divide_up(tokens * stride, max64(1, steps))} : Ahead{x, 0};
  }

  void rows_item(int64_t item, const Tiles& t, const uint32_t* packed, uint32_t* scratch, Ahead& ahead) const {
    find_units(item, scratch);
    const Unit* units = reinterpret_cast<const Unit*>(scratch);
    const int64_t count = offset(item + 1) - offset(item), first = item * outs_;
    for (int64_t tile = 0; tile < t.number; tile++) {
      const uint32_t* x = packed + tile * t.stride;
      const int width = t.width_of(tile), tokens = t.tokens_in(tile);
      const int64_t token = t.first + tile * t.width;
      if (stays(t, tile)) {
        rows_tile<kTokens>(units, count, first, in_place(token), ahead, token, tokens);
      } else if (width == kTokens) {
        rows_tile<kTokens>(units, count, first, PackedTile<kTokens>{x}, ahead, token, tokens);
      } else if (width == kThird) {
        rows_tile<kThird>(units, count, first, PackedTile<kThird>{x}, ahead, token, tokens);
      } else {
        rows_tile<2 * kThird>(units, count, first, PackedTile<2 * kThird>{x}, ahead, token, tokens);
      }
    }
  }

  void item(int64_t item, const Tiles& t, const uint32_t* packed, uint32_t* scratch, Ahead& ahead) const {
    if (lanes_are_outs_) return rows_item(item, t, packed, scratch, ahead);
    alignas(64) float sums[(kOuts + kLanes) * kMostVecs * kLanes];
    find_units(item, scratch);
    const Unit* units = reinterpret_cast<const Unit*>(scratch);
    const int64_t first = item * together_, last = min64(first + together_, out_blocks_);
    for (int64_t tile = 0; tile < t.number; tile++) {
      const uint32_t* x = packed + tile * t.stride;
      const int width = t.width_of(tile), tokens = t.tokens_in(tile);
      const int64_t token = t.first + tile * t.width;
      if (together_ == 1) {
        const int outs = int(min64(outs_, out_width_ - first * outs_));
        for (int out = 0; out < outs; out += kOuts) {
          const int stop = int(min64(out + kOuts, outs));
          strip(units, offset(item + 1) - offset(item), out, stop, x, width / kLanes, sums);
          write_tokens(sums, width, to_, token, tokens, first * outs_ + out, stop - out);
        }
      } else {
        int64_t outs = 0, before = 0;
        for (int64_t b = first; b < last; b++) {
          const int64_t count = call_.offsets[b + 1] - call_.offsets[b], own = min64(outs_, out_width_ - b * outs_);
          strip(units + before, count, 0, int(own), x, width / kLanes, sums + outs * width);
          before += count, outs += own;
        }
        write_tokens(sums, width, to_, token, tokens, first * outs_, int(outs));
      }
    }
  }

  // ---- threads ----

  // Items before `item`, weighed by what they cost: live elements, and a tile to write.
  int64_t cost_before(int64_t item) const { return offset(item) * size_ + 16 * item * together_ * outs_; }

  int64_t item_at(int64_t cost) const {
    return first_at(cost, items_, [this](int64_t item) { return cost_before(item); });
  }

  // Each thread has its own tokens, whose packed form stays in its L2 cache.
  void share_tokens(int64_t threads) {
    const int64_t groups = divide_up(call_.m, kLanes), at_once = tokens_at_once();
    parallel_for(0, groups, divide_up(groups, threads), [&](int64_t first_group, int64_t last_group) {
      const int64_t first = first_group * kLanes, last = min64(last_group * kLanes, call_.m);
      const int64_t words = tiles(0, min64(at_once, last - first)).number * tiles(0, 1).stride;
      uint32_t* packed = static_cast<uint32_t*>(thread_scratch((words + scratch_words()) * 4));
      if (!packed) return void(out_of_memory_ = true);
      for (int64_t token = first; token < last; token += at_once) {
        const Tiles t = tiles(token, min64(at_once, last - token));
        for (int64_t tile = 0; tile < t.number; tile++) pack(t, tile, packed);
        Ahead ahead = behind(t);
        for (int64_t i = 0; i < items_; i++) item(i, t, packed, packed + words, ahead);
      }
    });
  }

  // All threads share the packed tokens; each has its own columns of y.
  void share_outs(int64_t threads) {
    const int64_t at_once = tokens_at_once(), cost = cost_before(items_);
    const int64_t words = tiles(0, min64(at_once, call_.m)).number * tiles(0, 1).stride;
    uint32_t* packed = static_cast<uint32_t*>(call_scratch(words * 4));
    if (!packed) return void(out_of_memory_ = true);
    for (int64_t token = 0; token < call_.m; token += at_once) {
      const Tiles t = tiles(token, min64(at_once, call_.m - token));
      parallel_for(0, t.number, divide_up(t.number, threads), [&](int64_t first, int64_t last) {
        for (int64_t tile = first; tile < last; tile++) pack(t, tile, packed);
      });
      parallel_for(0, cost, divide_up(cost, threads), [&](int64_t first, int64_t last) {
        uint32_t* scratch = static_cast<uint32_t*>(thread_scratch(scratch_words() * 4));
        if (!scratch) return void(out_of_memory_ = true);
        const int64_t stop = last == cost ? items_ : item_at(last);
        Ahead ahead = behind(t);
        for (int64_t i = item_at(first); i < stop; i++) item(i, t, packed, scratch, ahead);
      });
    }
  }

  const BlockProduct& call_;
  int outs_, ins_;  // sides of a block
  int64_t size_, out_width_, in_width_;
  Target<Stored> to_;
  Steps steps_;
  bool copies_;  // the blocks of an item are copied in another order or type first
  bool lanes_are_outs_;
  bool in_place_;               // x is read where it lies, but for a last tile that is not whole
  bool fetches_x_;              // and fetched a block ahead
  int vecs_;                    // vectors of tokens in a tile
  int64_t out_blocks_, words_;  // words of a packed token
  int64_t together_, items_;    // out-blocks that are written together
  int64_t longest_ = 0;         // blocks of an item
  volatile bool out_of_memory_ = false;
};

}  // namespace

void block_product(const BlockProduct& call) {
  switch (call.dtype) {
    case 0:
      return Product<float, Floats>(call).run();
    case 1:
      if constexpr (kHasDotPairs) {
        if ((call.transposed ? call.rows : call.cols) % 2 == 0) return Product<BFloat16, Pairs>(call).run();
      }
      return Product<BFloat16, Floats>(call).run();
    default:
      return Product<Float16, Floats>(call).run();
  }
}

}  // namespace ajour::cpu::AJOUR_ISA
