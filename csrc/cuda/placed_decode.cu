#include "cuda/launch.cuh"
#include "cuda/nm_decode.cuh"

namespace ajour::cuda {

void placed_decode(const NMSlabs& layout, const DecodeCall& call, bool bfloat16, int device, void* stream) {
  switch (layout.group) {
    case 4:
      return start(PlacedValues<4>{layout}, call, bfloat16, device, stream);
    case 8:
      return start(PlacedValues<8>{layout}, call, bfloat16, device, stream);
    case 16:
      return start(PlacedValues<16>{layout}, call, bfloat16, device, stream);
    default:
      return start(PlacedValues<32>{layout}, call, bfloat16, device, stream);
  }
}

}  // namespace ajour::cuda
