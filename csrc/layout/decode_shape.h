// How a decode kernel is laid over a device: the tokens of a tile, the stripes, the stages of the pipeline, and the
// memory that this takes. Plain arithmetic, so that it is tested without a device.
#pragma once
#include "layout/stripes.h"

namespace ajour {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeMaxRows = 64;
constexpr int kMaxStages = 16;

// What a tile of `tokens` rows of x (8, 16, 32 or 64) is to the warps of a block: `warps_n` of them share x and take
// neighbouring panels, `warps_k` share the panels and take neighbouring slabs. The more tokens, the more panels for
// each copy of x: 64 tokens by 64 rows would read more bytes of x than of a 2:4 weight.
AJOUR_BOTH constexpr int decode_warps_n(int tokens) { return tokens <= 16 ? 1 : tokens == 32 ? 2 : 4; }
AJOUR_BOTH constexpr int decode_warps_k(int tokens) { return kDecodeWarps / decode_warps_n(tokens); }

struct DeviceLimits {
  int processors;
  int block_shared;      // bytes of shared memory that one block may use
  int processor_shared;  // bytes of one multiprocessor
};

// What is multiplied: a weight of `panels` by `slabs` slabs of `columns` columns, none of more than `room` bytes.
struct SlabGrid {
  int64_t panels, slabs;
  int columns, room;
};

struct DecodeShape {
  int panels, slabs;  // of the weight, and slabs of a panel
  int tokens;         // of a tile
  Stripes stripes;
  int stages;         // of the pipeline
  int room;           // bytes for a slab
  int64_t x_bytes;    // of one stage
  int64_t sum_bytes;  // where the warps that share panels add up, and results are finished
  int64_t shared_bytes;
  int64_t scratch_bytes;  // in global memory: the parts of shared tiles; 0 if no tile is shared

  AJOUR_BOTH int64_t stage_bytes() const { return x_bytes + int64_t(kDecodeWarps) * room; }
  AJOUR_BOTH static int64_t barrier_bytes() { return 256; }
  AJOUR_BOTH int64_t part_floats() const { return int64_t(decode_warps_n(tokens)) * kSlabRows * tokens; }
};

// The shape for m rows of x, with at most `blocks` blocks on a multiprocessor, as many as leave each two stages, and at
// most `stages` stages. Throws KernelError with what is missing.
DecodeShape decode_shape(int64_t m, const SlabGrid& w, const DeviceLimits& device, int blocks, int stages);

}  // namespace ajour
