#include "layout/decode_shape.h"

#include <algorithm>

#include "memory/check.h"

namespace ajour {

constexpr int kReserved = 1024;  // bytes of shared memory that the system takes for each block

DecodeShape decode_shape(int64_t m, const SlabGrid& w, const DeviceLimits& device, int blocks, int stages) {
  if (m < 1 || m > kDecodeMaxRows) refuse<KernelError>("decoding takes 1 to ", kDecodeMaxRows, " rows, found ", m);
  if (blocks < 1 || stages < 2) {
    refuse<KernelError>("decoding needs a block and two stages at least, found c", blocks, " s", stages);
  }
  if (w.panels < 1 || w.slabs < 1) refuse<KernelError>("decoding needs a weight, found one without rows or columns");
  // addresses of slabs are counted in 16 bytes, one slab beyond the last
  if (const int64_t most = (int64_t(INT32_MAX) * 16) / std::max(w.room, 16) - 1; w.panels > most / w.slabs) {
    refuse<KernelError>("decoding takes weights of at most ", most, " slabs, found ", w.panels, " by ", w.slabs);
  }
  DecodeShape shape{};
  shape.tokens = m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : 64;
  const int warps_n = decode_warps_n(shape.tokens), warps_k = decode_warps_k(shape.tokens);
  shape.room = w.room;
  shape.x_bytes = int64_t(shape.tokens) * w.columns * warps_k * 2;
  // of a warp that adds up, what the others leave, or one fragment of its own
  shape.sum_bytes = int64_t(warps_n) * std::max((warps_k - 1) * kSlabRows, kFragmentRows) * shape.tokens * 4;
  const int64_t fixed = DecodeShape::barrier_bytes() + shape.sum_bytes;
  do {
    const int64_t shared = std::min<int64_t>(device.block_shared, device.processor_shared / blocks - kReserved);
    shape.stages = int(std::min<int64_t>(std::min(stages, kMaxStages), (shared - fixed) / shape.stage_bytes()));
  } while (shape.stages < 2 && --blocks);
  if (!blocks) {
    refuse<KernelError>("decoding needs ", fixed + 2 * shape.stage_bytes(), " bytes of shared memory for a block of ",
                        shape.tokens, " rows, this device has ", device.block_shared);
  }
  shape.shared_bytes = fixed + shape.stages * shape.stage_bytes();
  const int64_t tiles = ceil_div(w.panels, warps_n), steps = ceil_div(w.slabs, warps_k);
  if (tiles * steps > INT32_MAX / kSlabRows) {
    refuse<KernelError>("decoding takes weights of at most ", INT32_MAX / kSlabRows, " steps, found ", tiles * steps);
  }
  shape.panels = int(w.panels);
  shape.slabs = int(w.slabs);
  shape.stripes = Stripes::cut(int(tiles), int(steps), device.processors * blocks);
  if (shape.stripes.shared()) shape.scratch_bytes = 2 * int64_t(shape.stripes.stripes) * shape.part_floats() * 4;
  return shape;
}

}  // namespace ajour
