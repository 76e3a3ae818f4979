// Slabs: a weight [n, k] as the warps of the decode kernels consume it.
//
// A panel is 64 rows, cut along k into slabs; a warp takes one slab at a time, as one contiguous piece of memory.
// Inside a slab everything stands where lane l of the warp reads it, as the fragments of `mma.m16n8k16` and of
// `mma.sp.m16n8k32` want it (PTX ISA 9.7.14.5 and 9.7.14.6; W is the operand with 16 rows): with g = l / 4 and c = l %
// 4, lane l holds rows g and g + 8 of each of the four fragments of 16 rows. What overhangs n or k is +0.0.
#pragma once
#include <cstdint>

#include "memory/both.h"

namespace ajour {

constexpr int kSlabRows = 64;
constexpr int kFragmentRows = 16;
constexpr int kFragments = kSlabRows / kFragmentRows;
constexpr int kWarp = 32;
constexpr int kSlabAlign = 16;  // bytes: what one asynchronous copy moves

AJOUR_BOTH int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the 16-byte chunk `chunk` (8 elements along k) of a row of x stands in shared memory, in chunks from the row's
// begin; rows of at least 8 chunks. Spread so that 8 lanes that read one chunk of 8 rows meet 32 different banks.
AJOUR_BOTH int spread_chunk(int row, int chunk) { return chunk ^ (row & 7); }

}  // namespace ajour
