// Packing where a weight lies: the work that layout/ describes, a thread for each of its things.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/on_device.h"

namespace ajour::cuda {

constexpr int kEachThreads = 256;

template <class Work>
__global__ void __launch_bounds__(kEachThreads) do_each(const __grid_constant__ Work work) {
  const int64_t count = work.count();
  for (int64_t i = int64_t(blockIdx.x) * kEachThreads + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kEachThreads) {
    work(i);
  }
}

// Launches on `stream` of the current device and returns. Throws KernelError if CUDA refuses.
template <class Work>
void each(const Work& work, cudaStream_t stream) {
  constexpr int64_t kMostBlocks = 1 << 30;
  const int64_t blocks = (work.count() + kEachThreads - 1) / kEachThreads;
  if (!blocks) return;
  do_each<<<unsigned(blocks < kMostBlocks ? blocks : kMostBlocks), kEachThreads, 0, stream>>>(work);
  check(cudaGetLastError(), "launch of a packing kernel");
}

}  // namespace ajour::cuda
