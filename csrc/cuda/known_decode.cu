#include "cuda/launch.cuh"
#include "cuda/nm_decode.cuh"

namespace ajour::cuda {

bool known_decode(const NMSlabs& layout, const DecodeCall& call, bool bfloat16, int device, void* stream) {
  if (call.shape.tokens > kKnownMostTokens) return false;
  switch (layout.group * 100 + layout.keep) {
    case 401:
      start(PlacedValues<4, 1>{layout}, call, bfloat16, device, stream);
      return true;
    case 802:
      start(PlacedValues<8, 2>{layout}, call, bfloat16, device, stream);
      return true;
    case 804:
      start(PlacedValues<8, 4>{layout}, call, bfloat16, device, stream);
      return true;
    default:
      return false;
  }
}

}  // namespace ajour::cuda
