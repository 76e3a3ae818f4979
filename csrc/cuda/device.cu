#include <cuda_runtime_api.h>

#include "cuda/device.h"

namespace ajour::cuda {

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace ajour::cuda
