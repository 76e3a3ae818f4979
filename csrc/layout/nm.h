// The canonical N:M form: of each group of neighbours along a row, the kept values and their packed positions.
#pragma once
#include <cstdint>

#include "memory/both.h"
#include "memory/views.h"

namespace ajour {

// Position e of a row stands at bits [e * position_bits, (e + 1) * position_bits) of its bytes, least significant
// first.
struct NMLayout {
  int keep, group;

  AJOUR_BOTH constexpr int position_bits() const {
    int bits = 0;
    while (1 << bits < group) ++bits;
    return bits;
  }
  AJOUR_BOTH constexpr int64_t groups(int64_t k) const { return (k + group - 1) / group; }
  AJOUR_BOTH constexpr int64_t kept(int64_t k) const { return groups(k) * keep; }
  AJOUR_BOTH constexpr int64_t position_bytes(int64_t k) const { return (kept(k) * position_bits() + 7) / 8; }
};

// values: [n, kept(k)] words, positions: [n, position_bytes(k)].
// Throws PatternError with the first group of `w` that has too many non-zeros.
void pack_nm(const NMLayout& layout, const WeightView& w, void* values, uint8_t* positions);

// Writes all of `w`. Whatever the positions say, nothing outside it is touched.
void unpack_nm(const NMLayout& layout, const void* values, const uint8_t* positions, const WeightView& w);

// `w` gives the size only. Throws FormatError with the first row that holds an illegal code, a bit after the last
// position, or a non-zero beyond k.
void check_nm(const NMLayout& layout, const void* values, const uint8_t* positions, const WeightView& w);

}  // namespace ajour
