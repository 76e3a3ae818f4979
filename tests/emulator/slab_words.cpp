// What a device's threads write of N:M slabs, one word after the other on the CPU: slab_words. Held against the packing
// of the host, over every pattern and ragged sizes.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "layout/nm.h"
#include "layout/nm_slab_words.h"
#include "memory/parallel.h"

namespace ajour {

using Body = void (*)(int64_t, int64_t, void*);
void parallel_for(int64_t begin, int64_t end, int64_t, Body body, void* context) { body(begin, end, context); }

namespace {

std::mt19937 random_bits(1);

// Random values, and positions whose codes of 2:4 are legal.
struct Canonical {
  Canonical(int64_t n, int64_t k, const NMLayout& layout)
      : kept(layout.kept(k)), width(layout.position_bytes(k)), values(size_t(n * kept)), positions(size_t(n * width)) {
    constexpr unsigned kCodes[6] = {4, 8, 9, 12, 13, 14};
    for (uint16_t& value : values) value = uint16_t(random_bits());
    const int bits = layout.position_bits();
    unsigned code = 0;
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t entry = 0; entry < kept; ++entry) {
        if (entry % 2 == 0) code = kCodes[random_bits() % 6];
        const bool two_four = layout.keep == 2 && layout.group == 4;
        unsigned place = two_four ? code >> entry % 2 * 2 & 3 : random_bits() % unsigned(layout.group);
        for (int bit = 0; bit < bits; ++bit, place >>= 1) {
          const int64_t at = entry * bits + bit;
          positions[size_t(row * width + at / 8)] |= uint8_t((place & 1) << at % 8);
        }
      }
    }
  }
  int64_t kept, width;
  std::vector<uint16_t> values;
  std::vector<uint8_t> positions;
};

bool same(int keep, int group, int64_t n, int64_t k) {
  const NMSlabs s = nm_slabs(n, k, keep, group);
  const NMLayout layout{keep, group};
  const Canonical from(n, k, layout);
  const NMRows rows{from.values.data(), from.positions.data(), n, from.kept, from.width, layout.position_bits()};
  std::vector<uint8_t> host(size_t(s.bytes()), 1), device(size_t(s.bytes()), 2);
  pack_nm_slabs(s, from.values.data(), from.positions.data(), host.data());
  for (int64_t slab = 0; slab <= s.panels() * s.slabs(); ++slab) {
    for (int word = 0; word < s.slab_bytes / 4; ++word) {
      const uint32_t bits = packed_word(s, rows, slab, word);
      std::memcpy(&device[size_t(slab * s.slab_bytes + word * 4)], &bits, 4);
    }
  }
  Canonical back = from;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t entry = 0; entry < from.kept; ++entry) {
      std::memcpy(&back.values[size_t(row * from.kept + entry)], &host[size_t(place_of(s, row, entry).value)], 2);
    }
    for (int64_t byte = 0; byte < from.width; ++byte) {
      back.positions[size_t(row * from.width + byte)] = position_byte(s, host.data(), from.kept, row, byte);
    }
  }
  return host == device && back.values == from.values && back.positions == from.positions;
}

}  // namespace
}  // namespace ajour

int main() {
  constexpr int64_t kSizes[][2] = {{1, 1}, {65, 300}, {128, 256}, {70, 131}, {33, 129}};
  for (int group : {4, 8, 16, 32}) {
    for (int keep = 1; keep < group; ++keep) {
      for (const auto& [n, k] : kSizes) {
        if (ajour::same(keep, group, n, k)) continue;
        std::fprintf(stderr, "%d:%d %dx%d: a device would pack or unpack other bits\n", keep, group, int(n), int(k));
        return 1;
      }
    }
  }
}
