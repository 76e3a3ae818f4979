#include "cpu/nm_expand.h"

#include "cpu/nm_codes.h"
#include "memory/parallel.h"

namespace ajour::cpu::AJOUR_ISA {
namespace {

// Writes the kept values of one window into `tile`, [16][kColumns] of zeros.
template <class Word, int kBits, bool kPaired, int kColumns>
void fill(const NMPanels& p, const Word*& values, const uint8_t*& codes, Word* tile) {
  constexpr int kStep = kPaired ? 2 : 1, kUnit = kPanelRows * kStep;
  for (int s = 0; s < p.slots; s += kStep, values += kUnit, codes += kUnit * kBits / 8) {
    for (int half = 0; half < kStep; half++) {
      uint32_t column[kPanelRows];
      for (int part = 0; part < kParts; part++) {
        const Words code = decode<kBits, kPaired ? kBits : kBits / 2>(codes, part) >> (16 * half);
        store(column + part * kLanes, (code & ((1u << kBits) - 1)) + uint32_t(p.base[s + half]));
      }
      AJOUR_UNROLL for (int r = 0; r < kPanelRows; r++) tile[r * kColumns + column[r]] = values[r * kStep + half];
    }
  }
}

template <class Word, int kBits, bool kPaired>
void expand(const NMExpand& a) {
  constexpr int kColumns = kBits == 8 ? 32 : 16,
                kTiles = 4;  // in turn, so that a tile's stores have left before its loads
  const NMPanels& p = a.layout;
  const int64_t held = p.windows * p.slots * kPanelRows;
  parallel_for(0, p.panels, 1, [&](int64_t begin, int64_t end) {
    alignas(64) Word tiles[kTiles][kPanelRows * kColumns];
    for (int64_t panel = begin; panel < end; panel++) {
      const Word* values = static_cast<const Word*>(a.values) + panel * held;
      const uint8_t* codes = a.codes + panel * held * kBits / 8;
      const int64_t row = panel * kPanelRows, rows = p.n - row < kPanelRows ? p.n - row : kPanelRows;
      for (int64_t i = 0; i < p.windows; i += kTiles) {
        const int64_t last = i + kTiles < p.windows ? i + kTiles : p.windows;
        memset(tiles, 0, sizeof tiles);
        for (int64_t w = i; w < last; w++) fill<Word, kBits, kPaired, kColumns>(p, values, codes, tiles[w - i]);
        for (int64_t r = 0; r < rows; r++) {
          Word* out = static_cast<Word*>(a.weight) + (row + r) * p.k;
          for (int64_t w = i; w < last; w++) {
            const int64_t column = w * p.window, columns = p.k - column < p.window ? p.k - column : p.window;
            const Word* from = tiles[w - i] + r * kColumns;
            if (columns == 16)
              memcpy(out + column, from, 16 * sizeof(Word));
            else if (columns > 0)
              memcpy(out + column, from, size_t(columns) * sizeof(Word));
          }
        }
      }
    }
  });
}

template <class Word>
void expand_words(const NMExpand& a) {
  if (a.layout.paired) return a.layout.bits == 2 ? expand<Word, 2, true>(a) : expand<Word, 4, true>(a);
  switch (a.layout.bits) {
    case 2:
      return expand<Word, 2, false>(a);
    case 4:
      return expand<Word, 4, false>(a);
    default:
      return expand<Word, 8, false>(a);
  }
}

}  // namespace

void nm_expand(const NMExpand& a) { a.layout.value_bytes == 4 ? expand_words<uint32_t>(a) : expand_words<uint16_t>(a); }

}  // namespace ajour::cpu::AJOUR_ISA
