#include "cuda/bitmap_decode.cuh"
#include "cuda/launch.cuh"

namespace ajour::cuda {

void bitmap_decode(const DecodeCall& call, bool bfloat16, int device, void* stream) {
  start(BitmapDecoder{}, call, bfloat16, device, stream);
}

}  // namespace ajour::cuda
