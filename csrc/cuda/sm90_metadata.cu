#include "cuda/on_device.h"
#include "cuda/sm90_metadata.h"

namespace ajour::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void pack(const __grid_constant__ Sm90Metadata layout, const uint8_t* positions, uint8_t* metadata) {
  const int64_t unit = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (unit < layout.units()) pack_sm90_unit(layout, unit, positions, metadata);
}

__global__ void unpack(const __grid_constant__ Sm90Metadata layout, const uint8_t* metadata, uint8_t* positions) {
  const int64_t unit = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (unit < layout.units()) unpack_sm90_unit(layout, unit, metadata, positions);
}

template <class Kernel, class... Args>
void start(Kernel kernel, const Sm90Metadata& layout, int device, void* stream, Args... args) {
  const OnDevice on(device);
  const auto blocks = unsigned(ceil_div(layout.units(), kThreads));
  kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(layout, args...);
  check(cudaGetLastError(), "launch of a packing kernel");
}

}  // namespace

void pack_sm90_metadata(const Sm90Metadata& layout, const uint8_t* positions, uint8_t* metadata, int device,
                        void* stream) {
  start(pack, layout, device, stream, positions, metadata);
}

void unpack_sm90_metadata(const Sm90Metadata& layout, const uint8_t* metadata, uint8_t* positions, int device,
                          void* stream) {
  start(unpack, layout, device, stream, metadata, positions);
}

}  // namespace ajour::cuda
