// How a decode kernel is started.
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>

#include "cuda/counters.h"
#include "cuda/on_device.h"
#include "cuda/stripe_linear.cuh"

namespace ajour::cuda {

// Four warps; 255 registers for each thread leave room for two blocks.
template <class Decoder, Float16Kind Kind, int TOKENS>
__global__ void __launch_bounds__(kDecodeWarps* kWarp, 2)
    stripe_linear(const __grid_constant__ Decoder decoder, const __grid_constant__ DecodeCall call) {
  extern __shared__ __align__(128) uint8_t shared[];
  StripeLinear<Decoder, Kind, TOKENS>(decoder, call, shared).run();
}

// Lets a kernel have so much shared memory on the current device, which is `device`; told once.
template <auto Kernel>
void allow_shared(int device, int bytes) {
  constexpr int kDevices = 64;
  static std::atomic<int> allowed[kDevices];  // bytes that each device was told to allow
  if (device < kDevices && allowed[device].load(std::memory_order_relaxed) >= bytes) return;
  check(cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
  check(cudaFuncSetAttribute(Kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100), "shared memory");
  if (device < kDevices) allowed[device].store(bytes, std::memory_order_relaxed);
}

template <class Decoder, Float16Kind Kind, int TOKENS>
void start(const Decoder& decoder, DecodeCall call, int device, cudaStream_t stream) {
  const int shared = int(call.shape.shared_bytes);
  const OnDevice on(device);
  allow_shared<stripe_linear<Decoder, Kind, TOKENS>>(device, shared);
  if (call.shape.scratch_bytes) call.counters = counters_for(device, stream, call.shape.stripes.tiles);
  const auto kernel = &stripe_linear<Decoder, Kind, TOKENS>;
  kernel<<<unsigned(call.shape.stripes.stripes), kDecodeWarps * kWarp, size_t(shared), stream>>>(decoder, call);
  check(cudaGetLastError(), "launch of a decode kernel");
}

template <class Decoder, Float16Kind Kind>
void start(const Decoder& decoder, const DecodeCall& call, int device, cudaStream_t stream) {
  switch (call.shape.tokens) {
    case 8:
      return start<Decoder, Kind, 8>(decoder, call, device, stream);
    case 16:
      return start<Decoder, Kind, 16>(decoder, call, device, stream);
    case 32:
      return start<Decoder, Kind, 32>(decoder, call, device, stream);
    default:
      if constexpr (Decoder::kMostTokens == 64) return start<Decoder, Kind, 64>(decoder, call, device, stream);
      refuse<KernelError>("this decoder takes ", Decoder::kMostTokens, " rows, found ", call.m);
  }
}

inline void check_slabs(const DecodeCall& call) {
  if (reinterpret_cast<uintptr_t>(call.slabs) % kSlabAlign) refuse<KernelError>("slabs must be aligned to 16 bytes");
}

template <class Decoder>
void start(const Decoder& decoder, const DecodeCall& call, bool bfloat16, int device, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  check_slabs(call);
  if (call.m < 1 || call.m > call.shape.tokens) {
    refuse<KernelError>("a launch for up to ", call.shape.tokens, " rows was given ", call.m);
  }
  if (bfloat16) {
    start<Decoder, Float16Kind::bfloat16>(decoder, call, device, on);
  } else {
    start<Decoder, Float16Kind::float16>(decoder, call, device, on);
  }
}

}  // namespace ajour::cuda
