// The device that a launch is for.
#pragma once
#include <cuda_runtime_api.h>

#include "memory/check.h"

namespace ajour::cuda {

inline void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // it was told; the next call starts afresh
  refuse<KernelError>(what, ": ", cudaGetErrorString(result));
}

// Makes a device current, and the one before again at the end.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    changed_ = before_ != device;
    if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace ajour::cuda
