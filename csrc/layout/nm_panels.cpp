#include "layout/nm_panels.h"

#include <algorithm>
#include <cstring>

#include "layout/nm.h"
#include "memory/check.h"
#include "memory/parallel.h"
#include "memory/views.h"

namespace ajour {
namespace {

constexpr int kMaxSlots = 32;

// How the codes of one slot (of two, paired) are stored: lane i in word[i], its lowest bit at shift[i].
struct Codes {
  explicit Codes(const NMPanels& p)
      : step(p.paired ? 2 : 1),
        words(p.paired ? 2 * p.bits : p.bits / 2),
        word_bytes(p.paired ? 2 : 4),
        mask((1u << p.bits) - 1) {
    for (int i = 0; i < step * kPanelRows; i++) {
      word[i] = i % words;
      shift[i] = p.bits * (i / words);
    }
  }

  // codes: [step][16]
  void write(const uint32_t (*codes)[kPanelRows], uint8_t*& out) const {
    uint32_t held[8] = {};
    for (int half = 0; half < step; half++) {
      for (int r = 0, i = half; r < kPanelRows; r++, i += step) held[word[i]] |= codes[half][r] << shift[i];
    }
    for (int i = 0; i < words; i++, out += word_bytes) std::memcpy(out, held + i, size_t(word_bytes));
  }

  void read(const uint8_t*& in, uint32_t (*codes)[kPanelRows]) const {
    uint32_t held[8] = {};
    for (int i = 0; i < words; i++, in += word_bytes) std::memcpy(held + i, in, size_t(word_bytes));
    for (int half = 0; half < step; half++) {
      for (int r = 0, i = half; r < kPanelRows; r++, i += step) codes[half][r] = held[word[i]] >> shift[i] & mask;
    }
  }

  int step, words, word_bytes;
  uint32_t mask;
  int word[2 * kPanelRows], shift[2 * kPanelRows];
};

// One window of a panel, on its way from one form to the other: row by row on the canonical side, as 16 rows of a
// power-of-two stride compete for one set of the cache.
template <class Word>
struct Window {
  Word values[kMaxSlots][kPanelRows];
  uint32_t codes[kMaxSlots][kPanelRows];

  void store(const NMPanels& p, const Codes& form, Word*& out, uint8_t*& out_codes) const {
    for (int s = 0; s < p.slots; s += form.step, out += form.step * kPanelRows) {
      for (int half = 0; half < form.step; half++) {
        for (int r = 0; r < kPanelRows; r++) out[r * form.step + half] = values[s + half][r];
      }
      form.write(codes + s, out_codes);
    }
  }

  void load(const NMPanels& p, const Codes& form, const Word*& in, const uint8_t*& in_codes) {
    for (int s = 0; s < p.slots; s += form.step, in += form.step * kPanelRows) {
      for (int half = 0; half < form.step; half++) {
        for (int r = 0; r < kPanelRows; r++) values[s + half][r] = in[r * form.step + half];
      }
      form.read(in_codes, codes + s);
    }
  }
};

// The canonical side of one panel: `rows` rows of kept values and of packed positions.
template <class Word, class Bytes>
struct Rows {
  Rows(const NMPanels& p, int64_t panel, Word* all_values, Bytes* all_positions)
      : canonical{p.keep, p.group},
        kept(canonical.kept(p.k)),
        width(canonical.position_bytes(p.k)),
        bits(canonical.position_bits()),
        count(int(std::min<int64_t>(kPanelRows, p.n - panel * kPanelRows))),
        values(all_values + panel * kPanelRows * kept),
        positions(all_positions + panel * kPanelRows * width) {
    for (int s = 0; s < p.slots; s++) origin[s] = uint32_t(s / p.keep * p.group - p.base[s]);
  }

  // Position e of a row stands at bits e * bits and up.
  uint32_t position(const uint8_t* row, uint64_t e) const {
    const uint64_t bit = e * uint64_t(bits), shift = bit % 8;
    uint32_t found = row[bit / 8];
    if (shift + uint64_t(bits) > 8) found |= uint32_t(row[bit / 8 + 1]) << 8;
    return found >> shift & ((1u << bits) - 1);
  }
  void set_position(uint8_t* row, uint64_t e, uint32_t place) const {  // in bytes that were zero
    const uint64_t bit = e * uint64_t(bits), shift = bit % 8;
    row[bit / 8] |= uint8_t(place << shift);
    if (shift + uint64_t(bits) > 8) row[bit / 8 + 1] |= uint8_t(place << shift >> 8);
  }

  NMLayout canonical;
  int64_t kept, width;
  int bits, count;
  uint32_t origin[kMaxSlots];  // the code of position 0
  Word* values;
  Bytes* positions;
};

template <class Word>
void pack_panel(const NMPanels& p, const Codes& form, const Rows<const Word, const uint8_t>& rows, Word* out,
                uint8_t* out_codes) {
  Window<Word> window;
  for (int64_t first = 0; first < p.windows * p.slots; first += p.slots) {
    const int live = int(std::max<int64_t>(0, std::min<int64_t>(p.slots, rows.kept - first)));
    if (live < p.slots || rows.count < kPanelRows) {
      for (int s = 0; s < p.slots; s++) {
        std::fill_n(window.values[s], kPanelRows, Word(0));
        std::fill_n(window.codes[s], kPanelRows, rows.origin[s]);
      }
    }
    for (int r = 0; r < rows.count; r++) {
      const Word* values = rows.values + r * rows.kept + first;
      const uint8_t* positions = rows.positions + r * rows.width;
      for (int s = 0; s < live; s++) {
        window.values[s][r] = values[s];
        window.codes[s][r] = rows.origin[s] + rows.position(positions, uint64_t(first + s));
      }
    }
    window.store(p, form, out, out_codes);
  }
}

template <class Word>
void unpack_panel(const NMPanels& p, const Codes& form, const Rows<Word, uint8_t>& rows, const Word* in,
                  const uint8_t* in_codes) {
  Window<Word> window;
  std::memset(rows.positions, 0, size_t(rows.count * rows.width));
  for (int64_t first = 0; first < rows.kept; first += p.slots) {
    const int live = int(std::min<int64_t>(p.slots, rows.kept - first));
    window.load(p, form, in, in_codes);
    for (int r = 0; r < rows.count; r++) {
      Word* values = rows.values + r * rows.kept + first;
      uint8_t* positions = rows.positions + r * rows.width;
      for (int s = 0; s < live; s++) {
        values[s] = window.values[s][r];
        rows.set_position(positions, uint64_t(first + s), window.codes[s][r] - rows.origin[s]);
      }
    }
  }
}

}  // namespace

NMPanels nm_panels(int64_t n, int64_t k, int keep, int group, int value_bytes, bool bfloat16) {
  if (keep < 1 || keep >= group || group > 32)
    refuse<KernelError>("panels need 1 <= keep < group <= 32, found ", keep, ":", group);
  if (value_bytes != 2 && value_bytes != 4)
    refuse<KernelError>("panels hold values of 2 or 4 bytes, found ", value_bytes);
  NMPanels p{};
  p.n = n;
  p.k = k;
  p.keep = keep;
  p.group = group;
  p.value_bytes = value_bytes;
  p.bits = group == 2 || group == 4 ? 2 : group <= 16 ? 4 : 8;
  p.window = group <= 16 ? 16 / group * group : group;
  p.slots = p.window / group * keep;
  p.paired = bfloat16 && p.window == 16 && p.slots % 2 == 0;
  p.panels = (n + kPanelRows - 1) / kPanelRows;
  p.windows = (k + p.window - 1) / p.window;
  if (p.paired) p.windows += p.windows % 2;
  p.values = p.panels * p.windows * p.slots * kPanelRows;
  p.code_bytes = p.values * p.bits / 8;
  for (int s = 0; s < p.slots; s++) p.base[s] = p.bits == 2 ? (s / keep * group) & ~3 : 0;
  return p;
}

void pack_nm_panels(const NMPanels& p, const void* values, const uint8_t* positions, void* panel_values,
                    uint8_t* panel_codes) {
  const int64_t held = p.windows * p.slots * kPanelRows;  // by a panel
  const Codes form(p);
  by_word(p.value_bytes, [&](auto word) {
    using Word = decltype(word);
    parallel_for(0, p.panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const Rows<const Word, const uint8_t> rows(p, i, static_cast<const Word*>(values), positions);
        pack_panel(p, form, rows, static_cast<Word*>(panel_values) + i * held, panel_codes + i * held * p.bits / 8);
      }
    });
  });
}

void unpack_nm_panels(const NMPanels& p, const void* panel_values, const uint8_t* panel_codes, void* values,
                      uint8_t* positions) {
  const int64_t held = p.windows * p.slots * kPanelRows;
  const Codes form(p);
  by_word(p.value_bytes, [&](auto word) {
    using Word = decltype(word);
    parallel_for(0, p.panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const Rows<Word, uint8_t> rows(p, i, static_cast<Word*>(values), positions);
        unpack_panel(p, form, rows, static_cast<const Word*>(panel_values) + i * held,
                     panel_codes + i * held * p.bits / 8);
      }
    });
  });
}

}  // namespace ajour
