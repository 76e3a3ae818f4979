#include "cuda/lanes_decode.cuh"
#include "cuda/launch.cuh"

namespace ajour::cuda {
namespace {

template <Float16Kind Kind>
void start_lanes(const NMSlabs& layout, const DecodeCall& call, int device, cudaStream_t stream) {
  switch (call.m) {
    case 1:
      return start<SparseLanes<1>, Kind, 8>({layout}, call, device, stream);
    case 2:
      return start<SparseLanes<2>, Kind, 8>({layout}, call, device, stream);
    default:
      return start<SparseLanes<4>, Kind, 8>({layout}, call, device, stream);
  }
}

}  // namespace

void lanes_decode(const NMSlabs& layout, const DecodeCall& call, bool bfloat16, int device, void* stream) {
  if (!layout.in_hardware() || call.m < 1 || call.m > kLanesMaxRows || call.shape.tokens != 8) {
    refuse<KernelError>("lanes take 1 to ", kLanesMaxRows, " rows of a 2:4 weight, found ", call.m, " of ", layout.keep,
                        ":", layout.group);
  }
  check_slabs(call);
  if (bfloat16) {
    start_lanes<Float16Kind::bfloat16>(layout, call, device, static_cast<cudaStream_t>(stream));
  } else {
    start_lanes<Float16Kind::float16>(layout, call, device, static_cast<cudaStream_t>(stream));
  }
}

}  // namespace ajour::cuda
