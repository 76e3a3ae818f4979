#include "cuda/gap_decode.cuh"
#include "cuda/launch.cuh"

namespace ajour::cuda {
namespace {

// 80 registers for each thread leave room for three blocks of eight warps.
template <Float16Kind Kind, int TOKENS>
__global__ void __launch_bounds__(kGapWarps* kWarp, 3)
    gap_linear(const __grid_constant__ DecodeCall call, const __grid_constant__ GapWeight weight) {
  extern __shared__ __align__(128) uint8_t shared[];
  GapLinear<Kind, TOKENS>(call, weight, shared).run();
}

template <Float16Kind Kind, int TOKENS>
void start(DecodeCall call, const GapWeight& w, int device, cudaStream_t stream) {
  const OnDevice on(device);
  allow_shared<gap_linear<Kind, TOKENS>>(device, int(w.shape.shared_bytes));
  if (w.shape.scratch_bytes) call.counters = counters_for(device, stream, w.layout.groups());
  const unsigned blocks = unsigned(w.shape.blocks) * unsigned(w.layout.spans);
  gap_linear<Kind, TOKENS><<<blocks, kGapWarps * kWarp, size_t(w.shape.shared_bytes), stream>>>(call, w);
  check(cudaGetLastError(), "launch of a decode kernel");
}

template <Float16Kind Kind>
void start(const DecodeCall& call, const GapWeight& w, int device, cudaStream_t stream) {
  switch (w.shape.tokens) {
    case 1:
      return start<Kind, 1>(call, w, device, stream);
    case 2:
      return start<Kind, 2>(call, w, device, stream);
    default:
      return start<Kind, 4>(call, w, device, stream);
  }
}

}  // namespace

void gap_decode(const GapRows& layout, const int32_t* order, const GapShape& shape, const DecodeCall& call,
                bool bfloat16, int device, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  check_slabs(call);
  if (call.m < 1 || call.m > shape.tokens) {
    refuse<KernelError>("a launch for up to ", shape.tokens, " rows was given ", call.m);
  }
  if (bfloat16) {
    start<Float16Kind::bfloat16>(call, {layout, order, shape}, device, on);
  } else {
    start<Float16Kind::float16>(call, {layout, order, shape}, device, on);
  }
}

}  // namespace ajour::cuda
