#include <cuda_runtime_api.h>

#include "cuda/decode.h"
#include "cuda/device.h"
#include "memory/check.h"

namespace ajour::cuda {

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

DeviceLimits device_limits(int device) {
  DeviceLimits limits{};
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    const cudaError_t result = cudaDeviceGetAttribute(&value, attribute, device);
    if (result != cudaSuccess) refuse<KernelError>("cuda:", device, ": ", cudaGetErrorString(result));
  };
  read(limits.processors, cudaDevAttrMultiProcessorCount);
  read(limits.block_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  read(limits.processor_shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return limits;
}

}  // namespace ajour::cuda
