// What a device's threads make of weights, one thread after the other in random order on the CPU: packing. Held against
// the packing of the host, bit for bit, over random weights of ragged sides with NaN, subnormals and -0.0.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "layout/bitmap_slab_words.h"
#include "layout/gap_codes.h"
#include "layout/nm_groups.h"
#include "memory/parallel.h"

namespace ajour {

using Body = void (*)(int64_t, int64_t, void*);
void parallel_for(int64_t begin, int64_t end, int64_t, Body body, void* context) { body(begin, end, context); }

namespace {

std::mt19937_64 random_bits(1);

void expect(bool right, const char* what, int64_t n, int64_t k) {
  if (right) return;
  std::fprintf(stderr, "%dx%d: %s\n", int(n), int(k), what);
  std::exit(1);
}

template <class Work>
void each(const Work& work) {
  std::vector<int64_t> order(static_cast<size_t>(work.count()));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_bits);
  for (const int64_t i : order) work(i);
}

// Random bits, of which one in `every` is no zero, and some zeros that are negative.
template <class Word>
std::vector<Word> weight(int64_t n, int64_t k, unsigned every) {
  std::vector<Word> w(size_t(n * k));
  for (Word& value : w) {
    value = random_bits() % every ? Word(Word(random_bits() % 2) << (8 * sizeof(Word) - 1)) : Word(random_bits());
  }
  return w;
}

// A canonical bitmap weight with memory of its own, filled with what must be overwritten.
template <class Word>
struct Bitmap {
  Bitmap(int64_t n, int64_t k)
      : n(n),
        k(k),
        bitmaps(size_t(tiles_of(n) * tiles_of(k)), ~0ull),
        offsets(size_t(tiles_of(n) * tile_groups_of(k) + 1), -1) {}
  BitmapTiles tiles() { return {{values.data(), bitmaps.data(), offsets.data(), int64_t(values.size())}, n, k}; }
  int64_t count() { return sum_offsets(offsets.data(), int64_t(offsets.size()) - 1); }
  bool operator==(const Bitmap& other) const {
    return values == other.values && bitmaps == other.bitmaps && offsets == other.offsets;
  }
  int64_t n, k;
  std::vector<Word> values;
  std::vector<uint64_t> bitmaps;
  std::vector<int32_t> offsets;
};

template <class Word>
Bitmap<Word> of_host(const WeightView& w) {
  Bitmap<Word> made(w.n, w.k);
  made.values.resize(size_t(find_nonzeros(w, made.bitmaps.data(), made.offsets.data())));
  pack_bitmap(w, made.tiles().tensors);
  return made;
}

template <class Word>
void canonical(int64_t n, int64_t k, unsigned every) {
  std::vector<Word> held = weight<Word>(n, k, every);
  const WeightView w{held.data(), n, k, int(sizeof(Word))};
  Bitmap<Word> made(n, k);
  each(FindTiles<Word>{w, made.tiles()});
  each(CountGroups{made.tiles()});
  made.values.resize(size_t(made.count()));
  each(PackTiles<Word>{w, made.tiles()});
  expect(made == of_host<Word>(w), "a device would make another bitmap", n, k);
  std::vector<Word> back(held.size(), 1), wanted(held.size(), 2);
  each(UnpackTiles<Word>{made.tiles(), {back.data(), n, k, int(sizeof(Word))}});
  unpack_bitmap(made.tiles().tensors, {wanted.data(), n, k, int(sizeof(Word))});
  expect(back == wanted, "a device would make another weight of a bitmap", n, k);
}

template <class Word>
void canonical_nm(int64_t n, int64_t k, const NMLayout& layout) {
  std::vector<Word> held = weight<Word>(n, k, 2);
  for (int64_t i = 0; i < n * layout.groups(k); ++i) {  // no more than `keep` non-zeros stay
    const int64_t row = i / layout.groups(k), first = i % layout.groups(k) * layout.group;
    int found = 0;
    for (int64_t j = first; j < std::min(k, first + layout.group); ++j) {
      if (!is_zero(held[size_t(row * k + j)]) && ++found > layout.keep) held[size_t(row * k + j)] = 0;
    }
  }
  const WeightView w{held.data(), n, k, int(sizeof(Word))};
  std::vector<Word> values(size_t(n * layout.kept(k)), 1), wanted(values.size(), 2);
  std::vector<uint8_t> positions(size_t(n * layout.position_bytes(k)), 1), places(positions.size(), 2);
  int32_t refused = 0;
  each(PackGroups<Word>{layout, w, values.data(), &refused});
  each(PackPositions<Word>{layout, w, positions.data()});
  pack_nm(layout, w, wanted.data(), places.data());
  expect(!refused, "a device would refuse a weight that fits", n, k);
  expect(values == wanted && positions == places, "a device would pack other values or positions", n, k);
  std::vector<Word> back(held.size(), 1), dense(held.size(), 2);
  each(UnpackGroups<Word>{layout, values.data(), positions.data(), {back.data(), n, k, int(sizeof(Word))}});
  unpack_nm(layout, values.data(), positions.data(), {dense.data(), n, k, int(sizeof(Word))});
  expect(back == dense, "a device would make another weight of its values", n, k);
  const int64_t crowd = std::min<int64_t>(k, layout.group);
  if (crowd <= layout.keep) return;
  std::fill(held.begin() + (n - 1) * k, held.begin() + (n - 1) * k + crowd, Word(1));
  each(PackGroups<Word>{layout, w, values.data(), &refused});
  expect(refused == 1, "a device would not see a group with too many non-zeros", n, k);
}

void slabs(int64_t n, int64_t k, unsigned every) {
  std::vector<uint16_t> held = weight<uint16_t>(n, k, every);
  Bitmap<uint16_t> from = of_host<uint16_t>({held.data(), n, k, 2}), back(n, k);
  const BitmapSlabs layout{n, k};
  std::vector<int32_t> index(size_t(layout.count() + 2));
  index_bitmap_slabs(layout, from.offsets.data(), index.data());
  std::vector<uint8_t> host(size_t(index.back()) * kSlabAlign, 1), device(host.size(), 2);
  pack_bitmap_slabs(layout, from.tiles().tensors, index.data(), host.data());
  each(PackBitmapSlabs{layout, from.tiles(), index.data(), device.data()});
  expect(host == device, "a device would pack other slabs", n, k);
  each(FindBitmapSlabs{layout, device.data(), index.data(), back.tiles()});
  each(CountGroups{back.tiles()});
  back.values.resize(size_t(back.count()));
  each(UnpackBitmapSlabs{layout, device.data(), index.data(), back.tiles()});
  expect(back == from, "a device would unpack slabs otherwise", n, k);
}

void gaps(int64_t n, int64_t k, unsigned every) {
  std::vector<uint16_t> held = weight<uint16_t>(n, k, every);
  Bitmap<uint16_t> from = of_host<uint16_t>({held.data(), n, k, 2}), back(n, k);
  const GapRows w = gap_rows(n, k);
  const size_t rows = size_t(w.groups()) * kGapRows;
  std::vector<int32_t> counts(size_t(n), -1), order(rows), steps(rows * size_t(w.spans), -1), host_counts(counts),
      host_steps(steps), index(size_t(w.groups()) * size_t(w.spans) + 1);
  each(CountGapRows{w, from.tiles(), counts.data()});
  count_gap_rows(w, from.tiles().tensors, host_counts.data());
  order_gap_rows(w, counts.data(), order.data());
  each(MeasureGapRows{w, from.tiles(), order.data(), steps.data()});
  measure_gap_rows(w, from.tiles().tensors, order.data(), host_steps.data());
  expect(counts == host_counts && steps == host_steps, "a device would lay gap rows out otherwise", n, k);
  index_gap_rows(w, steps.data(), index.data());
  std::vector<uint8_t> host(size_t(index.back()) * kGapUnit), device(host.size());
  pack_gap_rows(w, from.tiles().tensors, order.data(), index.data(), host.data());
  each(PackGapRows{w, from.tiles(), order.data(), index.data(), device.data()});
  expect(host == device, "a device would pack other gap rows", n, k);
  std::fill(back.bitmaps.begin(), back.bitmaps.end(), 0);
  each(FindGapRows{w, device.data(), order.data(), index.data(), back.tiles()});
  each(CountGroups{back.tiles()});
  back.values.resize(size_t(back.count()));
  each(UnpackGapRows{w, device.data(), order.data(), index.data(), back.tiles()});
  expect(back == from, "a device would unpack gap rows otherwise", n, k);
}

}  // namespace
}  // namespace ajour

int main() {
  constexpr int64_t kSizes[][2] = {{1, 1}, {65, 300}, {128, 256}, {70, 131}, {33, 1029}, {9, 9000}};
  for (const auto& [n, k] : kSizes) {
    for (unsigned every : {1u, 2u, 10u, 300u}) {
      ajour::canonical<uint16_t>(n, k, every);
      ajour::canonical<uint32_t>(n, k, every);
      ajour::canonical<uint64_t>(n, k, every);
      ajour::slabs(n, k, every);
      ajour::gaps(n, k, every);
    }
    if (k > 1000) continue;
    for (int group = 2; group <= 32; group += group < 8 ? 1 : 8) {
      for (int keep = 1; keep < group; keep += 1 + keep / 4) {
        ajour::canonical_nm<uint16_t>(n, k, {keep, group});
        ajour::canonical_nm<uint32_t>(n, k, {keep, group});
      }
    }
  }
}
