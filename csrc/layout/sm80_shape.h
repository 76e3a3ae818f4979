// How the 2:4 kernel for many rows is laid over a device: the tiles of y, their order, the stripes, the stages of the
// pipeline, and the memory that this takes. Plain arithmetic, so that it is tested without a device.
#pragma once
#include "layout/nm_slabs.h"
#include "layout/stripes.h"

namespace ajour {

constexpr int kSm80Columns = 64;                 // of a step: those of a 2:4 slab
constexpr int kSm80SlabBytes = 4608;             // of a 2:4 slab
constexpr int kSm80RowBytes = 2 * kSm80Columns;  // of a row of x in a stage
constexpr int kSm80MostStages = 5;
// Tiles of neighbouring panels that blocks take together before they move on to the next rows of x: what a wave of
// blocks reads of w and x is then about equal, and stays in the L2 cache.
constexpr int kSm80Together = 8;

// What one block computes: `panels` of the weight by `warps_m` groups of `tokens` rows of x, a warp for each of them.
struct Sm80Tile {
  int panels, warps_m, tokens;

  AJOUR_BOTH constexpr int warps() const { return panels * warps_m; }
  AJOUR_BOTH constexpr int rows() const { return warps_m * tokens; }  // of x
  AJOUR_BOTH constexpr int weight_bytes() const { return panels * kSm80SlabBytes; }
  AJOUR_BOTH constexpr int stage_bytes() const { return weight_bytes() + rows() * kSm80RowBytes; }
  AJOUR_BOTH constexpr int part_floats() const { return panels * kSlabRows * rows(); }
  bool operator==(const Sm80Tile& other) const {
    return panels == other.panels && warps_m == other.warps_m && tokens == other.tokens;
  }
};

// The tiles that are compiled, largest first.
constexpr Sm80Tile kSm80Tiles[] = {{4, 2, 64}, {2, 4, 64}, {2, 2, 64}, {2, 2, 32}};

// A warp finishes its sums 8 rows of x by 64 of the weight at a time, in the stage that was multiplied last: rows
// kSm80Pitch floats apart, so that what the lanes store at once meets 32 banks.
constexpr int kSm80Pitch = kSlabRows + 4;
constexpr int kSm80HeadBytes = 16;  // before the stages

struct Sm80Shape {
  Sm80Tile tile;
  int panels, slabs;     // of the weight, and slabs of a panel: the steps of a tile
  int tiles_n, tiles_m;  // of y
  Stripes stripes;
  int stages;
  int64_t shared_bytes;
  int64_t scratch_bytes;  // in global memory: the parts of shared tiles; 0 if no tile is shared

  // The first panel and the first row of x of a tile, in tiles: kSm80Together neighbours for each tile of rows.
  AJOUR_BOTH int column_of(int tile) const {
    const int band = tile / (kSm80Together * tiles_m), inside = tile - band * kSm80Together * tiles_m;
    return band * kSm80Together + inside % width_of(band);
  }
  AJOUR_BOTH int row_of(int tile) const {
    const int band = tile / (kSm80Together * tiles_m), inside = tile - band * kSm80Together * tiles_m;
    return inside / width_of(band);
  }
  AJOUR_BOTH int width_of(int band) const {
    const int left = tiles_n - band * kSm80Together;
    return left < kSm80Together ? left : kSm80Together;
  }
};

// The shape for m rows of x: a block for each tile, or, if `blocks` of a processor are named, that many blocks for each
// of `processors`, which take equal stripes of all the work. At most `stages` stages, as many as fit `block_shared`
// bytes. Throws KernelError with what is missing.
Sm80Shape sm80_shape(int64_t m, int64_t n, int64_t k, const Sm80Tile& tile, int stages, int blocks, int processors,
                     int64_t block_shared);

}  // namespace ajour
