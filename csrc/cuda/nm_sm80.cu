#include "cuda/launch.cuh"
#include "cuda/nm_sm80.cuh"

namespace ajour::cuda {
namespace {

// 255 registers for each thread: two blocks of 128 threads, or one of 256.
template <Float16Kind Kind, int PANELS, int WARPS_M, int TOKENS>
__global__ void __launch_bounds__(PANELS * WARPS_M * kWarp, 8 / (PANELS * WARPS_M))
    sm80_linear(const __grid_constant__ Sm80Call call) {
  extern __shared__ __align__(128) uint8_t shared[];
  Sm80Linear<Kind, PANELS, WARPS_M, TOKENS>(call, shared).run();
}

template <Float16Kind Kind, int PANELS, int WARPS_M, int TOKENS>
void start(Sm80Call call, int device, cudaStream_t stream) {
  const int shared = int(call.shape.shared_bytes);
  allow_shared<sm80_linear<Kind, PANELS, WARPS_M, TOKENS>>(device, shared);
  if (call.shape.scratch_bytes) call.counters = counters_for(device, stream, call.shape.stripes.tiles);
  const auto kernel = &sm80_linear<Kind, PANELS, WARPS_M, TOKENS>;
  kernel<<<unsigned(call.shape.stripes.stripes), PANELS * WARPS_M * kWarp, size_t(shared), stream>>>(call);
  check(cudaGetLastError(), "launch of the 2:4 kernel for many rows");
}

template <Float16Kind Kind>
void start(const Sm80Call& call, int device, cudaStream_t stream) {
  if (call.shape.tile == Sm80Tile{4, 2, 64}) return start<Kind, 4, 2, 64>(call, device, stream);
  if (call.shape.tile == Sm80Tile{2, 4, 64}) return start<Kind, 2, 4, 64>(call, device, stream);
  if (call.shape.tile == Sm80Tile{2, 2, 64}) return start<Kind, 2, 2, 64>(call, device, stream);
  start<Kind, 2, 2, 32>(call, device, stream);
}

}  // namespace

void nm_sm80(const Sm80Call& call, bool bfloat16, int device, void* stream) {
  if (reinterpret_cast<uintptr_t>(call.slabs) % 16 || reinterpret_cast<uintptr_t>(call.x) % 16 || call.x_stride % 8) {
    refuse<KernelError>("slabs and rows of x must be aligned to 16 bytes");
  }
  if (call.m < 1 || call.m > call.shape.tiles_m * int64_t(call.shape.tile.rows())) {
    refuse<KernelError>("a launch for ", call.shape.tiles_m, " tiles of rows was given ", call.m, " rows");
  }
  const OnDevice on(device);
  if (bfloat16) {
    start<Float16Kind::bfloat16>(call, device, static_cast<cudaStream_t>(stream));
  } else {
    start<Float16Kind::float16>(call, device, static_cast<cudaStream_t>(stream));
  }
}

}  // namespace ajour::cuda
