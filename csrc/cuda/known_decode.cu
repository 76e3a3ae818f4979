#include "cuda/launch.cuh"
#include "cuda/nm_decode.cuh"

namespace ajour::cuda {
namespace {

template <int GROUP, int KEEP>
bool start_known(const NMSlabs& layout, const DecodeCall& call, bool bfloat16, int device, void* stream) {
  using Decoder = PlacedValues<GROUP, KEEP>;
  if (call.shape.tokens > Decoder::kMostTokens) return false;
  start(Decoder{layout}, call, bfloat16, device, stream);
  return true;
}

}  // namespace

bool known_decode(const NMSlabs& layout, const DecodeCall& call, bool bfloat16, int device, void* stream) {
  if (layout.keep == 1 && layout.group == 4) return start_known<4, 1>(layout, call, bfloat16, device, stream);
  if (layout.keep == 2 && layout.group == 8) return start_known<8, 2>(layout, call, bfloat16, device, stream);
  if (layout.keep == 4 && layout.group == 8) return start_known<8, 4>(layout, call, bfloat16, device, stream);
  return false;
}

}  // namespace ajour::cuda
