// Borrowed memory with a shape; whoever lends it keeps it alive.
#pragma once
#include <cstdint>

#include "memory/both.h"
#include "memory/check.h"

namespace ajour {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the packed formats are defined for little-endian machines");

// A contiguous weight [n, k]. Its elements are moved as words of `itemsize` bytes and never read as numbers: that keeps
// the payload of a NaN, and one code serves float16 and bfloat16.
struct WeightView {
  void* data;
  int64_t n, k;
  int itemsize;

  template <class Word>
  AJOUR_BOTH Word* row(int64_t i) const {
    return static_cast<Word*>(data) + i * k;
  }
};

// Calls visit(Word{}) with the unsigned word of `itemsize` bytes.
template <class Visit>
void by_word(int itemsize, const Visit& visit) {
  switch (itemsize) {
    case 2:
      return visit(uint16_t{});
    case 4:
      return visit(uint32_t{});
    case 8:
      return visit(uint64_t{});
    default:
      refuse<FormatError>("a weight's elements have 2, 4 or 8 bytes, found ", itemsize);
  }
}

}  // namespace ajour
