#include "layout/bitmap_slabs.h"

#include <algorithm>
#include <cstring>

#include "layout/bitmap_slab_words.h"
#include "layout/zeros.h"
#include "memory/parallel.h"

namespace ajour {
namespace {

constexpr int kTiles = BitmapSlabs::kTiles;

// The 8x8 canonical tiles that a slab covers; those beyond the weight are empty.
struct SlabTiles {
  SlabTiles(const BitmapSlabs& s, const BitmapTensors& matrix, int64_t panel, int64_t slab)
      : rows(int(std::min<int64_t>(kTiles, tiles_of(s.n) - panel * kTiles))),
        cols(int(std::min<int64_t>(kTiles, tiles_of(s.k) - slab * kTiles))),
        stride(tiles_of(s.k)),
        first(matrix.bitmaps + panel * kTiles * stride + slab * kTiles) {}

  uint64_t* at(int row, int col) const { return row < rows && col < cols ? first + row * stride + col : nullptr; }

  int rows, cols;
  int64_t stride;
  uint64_t* first;
};

int64_t offset_at(const BitmapSlabs& s, const BitmapTensors& matrix, int64_t panel, int row, int64_t slab) {
  return matrix.offsets[(panel * kTiles + row) * tile_groups_of(s.k) + slab];
}

// Calls visit(canonical index, index in the slab) for each value of a slab, whose tiles are filled in.
template <class Visit>
void each_value(const BitmapSlabs& s, const BitmapTensors& matrix, int64_t panel, int64_t slab, const Visit& visit) {
  const SlabTiles tiles(s, matrix, panel, slab);
  uint64_t bits[kTiles][kTiles];
  int64_t next[kTiles][kTiles];
  for (int row = 0; row < kTiles; ++row) {
    int64_t index = row < tiles.rows ? offset_at(s, matrix, panel, row, slab) : 0;
    for (int col = 0; col < kTiles; ++col) {
      const uint64_t* tile = tiles.at(row, col);
      bits[row][col] = tile ? *tile : 0;
      next[row][col] = index;
      index += count_bits(bits[row][col]);
    }
  }
  int64_t place = 0;
  for (int step = 0; step < BitmapSlabs::kSteps; ++step) {
    for (int lane = 0; lane < kWarp; ++lane) {
      uint32_t word = 0;
      for (int row = 0; row < kTiles; ++row) {
        for (int c = 0; c < 2; ++c) {
          word |= uint32_t(bits[row][2 * step + c] >> 2 * lane & 3) << BitmapSlabs::bit_of(row, 2 * step + c);
        }
      }
      for (; word; word &= word - 1) {
        const int bit = __builtin_ctz(word), reg = bit % 8 / 2;
        visit(next[bit / 8 * 2 + reg % 2][2 * step + reg / 2]++, place++);
      }
    }
  }
}

template <class Visit>
void each_slab(const BitmapSlabs& s, const Visit& visit) {
  parallel_for(0, s.panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t slab = 0; slab < s.slabs(); ++slab) visit(panel, slab, panel * s.slabs() + slab);
    }
  });
}

}  // namespace

int64_t index_bitmap_slabs(const BitmapSlabs& s, const int32_t* offsets, int32_t* index) {
  int64_t end = 0, largest = BitmapSlabs::kBitBytes;
  for (int64_t panel = 0; panel < s.panels(); ++panel) {
    const int rows = int(std::min<int64_t>(kTiles, tiles_of(s.n) - panel * kTiles));
    for (int64_t slab = 0; slab < s.slabs(); ++slab) {
      int64_t values = 0;
      for (int row = 0; row < rows; ++row) {
        const int64_t at = (panel * kTiles + row) * tile_groups_of(s.k) + slab;
        values += offsets[at + 1] - offsets[at];
      }
      const int64_t bytes = BitmapSlabs::kBitBytes + ceil_div(2 * values, kSlabAlign) * kSlabAlign;
      index[panel * s.slabs() + slab] = int32_t(end);
      end += bytes / kSlabAlign;
      largest = std::max(largest, bytes);
    }
  }
  index[s.count()] = int32_t(end);
  end += BitmapSlabs::kBitBytes / kSlabAlign;
  if (end > INT32_MAX) refuse<KernelError>("bitmap slabs have at most 32 GiB, found ", end, " times 16 bytes");
  index[s.count() + 1] = int32_t(end);
  return largest;
}

void pack_bitmap_slabs(const BitmapSlabs& s, const BitmapTensors& matrix, const int32_t* index, uint8_t* slabs) {
  each_slab(s, [&](int64_t panel, int64_t slab, int64_t i) {
    uint8_t* out = slabs + int64_t(index[i]) * kSlabAlign;
    std::memset(out, 0, size_t(index[i + 1] - index[i]) * kSlabAlign);
    const SlabTiles tiles(s, matrix, panel, slab);
    uint32_t words[kWarp][BitmapSlabs::kSteps] = {};
    for (int row = 0; row < kTiles; ++row) {
      for (int col = 0; col < kTiles; ++col) {
        if (const uint64_t* tile = tiles.at(row, col)) {
          for (int lane = 0; lane < kWarp; ++lane) {
            words[lane][col / 2] |= uint32_t(*tile >> 2 * lane & 3) << BitmapSlabs::bit_of(row, col);
          }
        }
      }
    }
    std::memcpy(out, words, sizeof words);
    const uint16_t* from = static_cast<const uint16_t*>(matrix.values);
    uint8_t* values = out + BitmapSlabs::kBitBytes;
    each_value(s, matrix, panel, slab,
               [&](int64_t canonical, int64_t place) { std::memcpy(values + 2 * place, from + canonical, 2); });
  });
  std::memset(slabs + int64_t(index[s.count()]) * kSlabAlign, 0, BitmapSlabs::kBitBytes);
}

int64_t find_bitmap_slabs(const BitmapSlabs& s, const uint8_t* slabs, const int32_t* index,
                          const BitmapTensors& matrix) {
  const int64_t groups = tile_groups_of(s.k);
  each_slab(s, [&](int64_t panel, int64_t slab, int64_t i) {
    const auto* words = reinterpret_cast<const uint32_t*>(slabs + int64_t(index[i]) * kSlabAlign);
    const SlabTiles tiles(s, matrix, panel, slab);
    for (int row = 0; row < tiles.rows; ++row) {
      int count = 0;
      for (int col = 0; col < tiles.cols; ++col) {
        *tiles.at(row, col) = bitmap_slab_tile(words, row, col);
        count += count_bits(*tiles.at(row, col));
      }
      matrix.offsets[(panel * kTiles + row) * groups + slab + 1] = count;
    }
  });
  return sum_offsets(matrix.offsets, tiles_of(s.n) * groups);
}

void unpack_bitmap_slabs(const BitmapSlabs& s, const uint8_t* slabs, const int32_t* index,
                         const BitmapTensors& matrix) {
  each_slab(s, [&](int64_t panel, int64_t slab, int64_t i) {
    const uint8_t* values = slabs + int64_t(index[i]) * kSlabAlign + BitmapSlabs::kBitBytes;
    uint16_t* to = static_cast<uint16_t*>(matrix.values);
    each_value(s, matrix, panel, slab,
               [&](int64_t canonical, int64_t place) { std::memcpy(to + canonical, values + 2 * place, 2); });
  });
}

}  // namespace ajour
