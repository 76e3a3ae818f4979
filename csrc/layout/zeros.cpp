#include "layout/zeros.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "memory/parallel.h"

namespace ajour {
namespace {

constexpr int BAND = 128;  // rows that a thread takes at once: the tallest block

// Bit i * cols of the result is set where any of bits [i * cols, (i + 1) * cols) is; cols is a power of two up to 64.
uint64_t fold(uint64_t bits, int cols) {
  for (int width = 1; width < cols; width *= 2) bits |= bits >> width;
  uint64_t first = 1;
  for (int width = cols; width < 64; width *= 2) first |= first << width;
  return bits & first;
}

// Raises each keep to the most bits in any aligned group of 2, 4, 8, 16, 32 bits of the word.
void raise_keeps(uint64_t word, std::array<int, 5>& keeps) {
  constexpr uint64_t even[5] = {0x5555555555555555u, 0x3333333333333333u, 0x0f0f0f0f0f0f0f0fu, 0x00ff00ff00ff00ffu,
                                0x0000ffff0000ffffu};
  uint64_t counts = word;  // of fields of one bit, then of two, four, ...
  for (int level = 0; level < 5; ++level) {
    const int width = CENSUS_GROUPS[level];
    counts = (counts & even[level]) + (counts >> width / 2 & even[level]);
    for (int field = 0; field < 64; field += width) {
      keeps[level] = std::max(keeps[level], int(counts >> field & (2 * width - 1)));
    }
  }
}

// How many bits of the word are beyond the first two of their aligned group of four.
int beyond_two(uint64_t word) {
  uint64_t counts = (word & 0x5555555555555555u) + (word >> 1 & 0x5555555555555555u);
  counts = (counts & 0x3333333333333333u) + (counts >> 2 & 0x3333333333333333u);
  return count_bits(counts & counts >> 1 & 0x1111111111111111u) + 2 * count_bits(counts & 0x4444444444444444u);
}

// What one thread has counted; columns are the union of its rows.
struct Tally {
  Census census;
  std::vector<uint64_t> columns;

  explicit Tally(int64_t words) : columns(words) {}

  void count_row(const uint64_t* mask, int64_t words) {
    int64_t nonzeros = 0;
    for (int64_t word = 0; word < words; ++word) {
      nonzeros += count_bits(mask[word]);
      columns[word] |= mask[word];
      raise_keeps(mask[word], census.keeps);
      census.beyond_two += beyond_two(mask[word]);
    }
    census.nonzeros += nonzeros;
    census.zero_rows += nonzeros == 0;
  }

  // `mask` is the union of `inside` rows (fewer than block.rows at the lower edge).
  void count_blocks(BlockCount& block, const uint64_t* mask, int64_t k, int inside) {
    const int64_t words = mask_words(k);
    const int step = std::max(1, block.cols / 64);  // words of a block
    int64_t live = 0;
    for (int64_t word = 0; word < words; word += step) {
      uint64_t bits = mask[word];
      for (int64_t more = word + 1; more < std::min(words, word + step); ++more) bits |= mask[more];
      live += count_bits(fold(bits, std::min(64, block.cols)));
    }
    const int64_t last = (k - 1) / block.cols * block.cols;  // the right-most block may overhang k
    bool is_last_live = false;
    for (int64_t j = last; j < k; j += 64) is_last_live |= bits_at(mask, j, int(std::min<int64_t>(64, k - j))) != 0;
    block.live += live;
    block.stored += inside * (live * block.cols - (is_last_live ? last + block.cols - k : 0));
  }

  // `masks` holds the masks of a band's rows and is used up: rows are united in pairs, level by level.
  void count_band(uint64_t* masks, int64_t k, int rows) {
    const int64_t words = mask_words(k);
    for (int i = 0; i < rows; ++i) count_row(masks + i * words, words);
    for (int height = 1, unions = rows; height <= BAND; height *= 2, unions = (unions + 1) / 2) {
      if (height > 1) unite_pairs(masks, words, (rows + height / 2 - 1) / (height / 2));
      for (BlockCount& block : census.blocks) {
        if (block.rows != height) continue;
        for (int i = 0; i < unions; ++i) {
          count_blocks(block, masks + i * words, k, std::min(height, rows - i * height));
        }
      }
    }
  }

  static void unite_pairs(uint64_t* masks, int64_t words, int rows) {
    for (int i = 0; i < rows; i += 2) {
      for (int64_t word = 0; word < words; ++word) {
        masks[i / 2 * words + word] =
            masks[i * words + word] | (i + 1 < rows ? masks[(i + 1) * words + word] : uint64_t(0));
      }
    }
  }

  void merge(const Tally& other) {
    census.nonzeros += other.census.nonzeros;
    census.zero_rows += other.census.zero_rows;
    census.beyond_two += other.census.beyond_two;
    for (size_t i = 0; i < census.keeps.size(); ++i) {
      census.keeps[i] = std::max(census.keeps[i], other.census.keeps[i]);
    }
    for (size_t i = 0; i < census.blocks.size(); ++i) {
      census.blocks[i].live += other.census.blocks[i].live;
      census.blocks[i].stored += other.census.blocks[i].stored;
    }
    for (size_t i = 0; i < columns.size(); ++i) columns[i] |= other.columns[i];
  }
};

}  // namespace

Census census(const WeightView& w) {
  const int64_t words = mask_words(w.k);
  Tally total(words);
  if (w.n > 0 && w.k > 0) {
    std::mutex merging;
    by_word(w.itemsize, [&](auto zero) {
      using Word = decltype(zero);
      parallel_for(0, (w.n + BAND - 1) / BAND, 1, [&](int64_t first, int64_t last) {
        Tally tally(words);
        std::vector<uint64_t> masks(BAND * words);
        for (int64_t band = first; band < last; ++band) {
          const int rows = int(std::min<int64_t>(BAND, w.n - band * BAND));
          for (int i = 0; i < rows; ++i) mask_row(w.row<Word>(band * BAND + i), w.k, masks.data() + i * words);
          tally.count_band(masks.data(), w.k, rows);
        }
        const std::lock_guard<std::mutex> lock(merging);
        total.merge(tally);
      });
    });
  } else {
    total.census.zero_rows = w.n;
  }
  total.census.zero_cols = w.k;
  for (uint64_t word : total.columns) total.census.zero_cols -= count_bits(word);
  return total.census;
}

}  // namespace ajour
