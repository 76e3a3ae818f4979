#include "cuda/launch.cuh"
#include "cuda/nm_decode.cuh"

namespace ajour::cuda {

void nm_decode(const NMSlabs& layout, const DecodeCall& call, bool bfloat16, int device, void* stream) {
  if (layout.in_hardware()) return start(SparseMma{layout}, call, bfloat16, device, stream);
  if (known_decode(layout, call, bfloat16, device, stream)) return;
  placed_decode(layout, call, bfloat16, device, stream);
}

}  // namespace ajour::cuda
