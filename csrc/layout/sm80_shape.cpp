#include "layout/sm80_shape.h"

#include <algorithm>

#include "memory/check.h"

namespace ajour {

Sm80Shape sm80_shape(int64_t m, int64_t n, int64_t k, const Sm80Tile& tile, int stages, int blocks, int processors,
                     int64_t block_shared) {
  if (std::find(std::begin(kSm80Tiles), std::end(kSm80Tiles), tile) == std::end(kSm80Tiles)) {
    refuse<KernelError>("no kernel was compiled for tiles of ", tile.panels * kSlabRows, " out features by ",
                        tile.rows(), " rows");
  }
  if (m < 1 || n < 1 || k < 1 || stages < 2 || blocks < 0 || processors < 1) {
    refuse<KernelError>("a product needs rows, out and in features, and two stages, found ", m, " rows, ", n, "x", k,
                        " and s", stages);
  }
  Sm80Shape shape{};
  shape.tile = tile;
  const int64_t panels = ceil_div(n, kSlabRows), steps = ceil_div(k, kSm80Columns);
  const int64_t tiles_n = ceil_div(panels, tile.panels), tiles_m = ceil_div(m, tile.rows());
  if (tiles_n * tiles_m > INT32_MAX / steps / kSm80Together) {
    refuse<KernelError>("it takes at most ", INT32_MAX / kSm80Together, " steps, found ", tiles_n * tiles_m,
                        " tiles of ", steps);
  }
  shape.panels = int(panels);
  shape.slabs = int(steps);
  shape.tiles_n = int(tiles_n);
  shape.tiles_m = int(tiles_m);
  const int64_t room = block_shared - kSm80HeadBytes;
  shape.stages = int(std::min<int64_t>(std::min(stages, kSm80MostStages), room / tile.stage_bytes()));
  if (shape.stages < 2) {
    refuse<KernelError>("it needs ", kSm80HeadBytes + 2 * tile.stage_bytes(), " bytes of shared memory for tiles of ",
                        tile.panels * kSlabRows, " out features by ", tile.rows(), " rows, this device has ",
                        block_shared);
  }
  shape.shared_bytes = kSm80HeadBytes + shape.stages * int64_t(tile.stage_bytes());
  const int tiles = int(tiles_n * tiles_m);
  shape.stripes = Stripes::cut(tiles, shape.slabs, blocks ? blocks * processors : tiles);
  if (shape.stripes.shared()) shape.scratch_bytes = 2 * int64_t(shape.stripes.stripes) * tile.part_floats() * 4;
  return shape;
}

}  // namespace ajour
