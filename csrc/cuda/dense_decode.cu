#include "cuda/dense_decode.cuh"
#include "cuda/launch.cuh"

namespace ajour::cuda {

void dense_decode(const DecodeCall& call, bool bfloat16, int device, void* stream) {
  start(DenseMma{}, call, bfloat16, device, stream);
}

}  // namespace ajour::cuda
