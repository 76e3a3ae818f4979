#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "cuda/on_device.h"
#include "cuda/round_rows.h"

namespace ajour::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kStillRounds = 464.0f;  // to 448, the largest e4m3

template <class T>
struct Exponents;  // of scales, so that every rounded value is exact in T
template <>
struct Exponents<__nv_bfloat16> {
  static constexpr int kLow = -117, kHigh = 119;
};
template <>
struct Exponents<__half> {
  static constexpr int kLow = -15, kHigh = 7;
};

// The largest |x| of a row, Inf where it holds NaN; all threads get it.
template <class T>
__device__ float largest_of(const T* row, int k) {
  __shared__ float of_warp[kThreads / 32];
  float largest = 0.0f;
  for (int i = threadIdx.x; i < k; i += kThreads) {
    const float v = fabsf(float(row[i]));
    largest = v <= largest ? largest : v == v ? v : INFINITY;
  }
  for (int away = 16; away; away /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, away));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
  for (float each : of_warp) largest = fmaxf(largest, each);
  return largest;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    round_rows(const T* x, int64_t x_stride, int k, int width, uint8_t* rounded, float* scales) {
  const T* row = x + blockIdx.x * x_stride;
  const float largest = largest_of(row, k);
  int exponent;
  const float fraction = frexpf(largest / kStillRounds, &exponent);
  exponent = min(max(fraction == 0.5f ? exponent - 1 : exponent, Exponents<T>::kLow), Exponents<T>::kHigh);
  const bool finite = largest < INFINITY;
  if (threadIdx.x == 0) scales[blockIdx.x] = finite ? ldexpf(1.0f, exponent) : NAN;
  const float inverse = finite ? ldexpf(1.0f, -exponent) : NAN;
  uint8_t* to = rounded + int64_t(blockIdx.x) * width;
  for (int i = threadIdx.x * 8; i < width; i += kThreads * 8) {
    uint2 eight;
    auto* pair = reinterpret_cast<__nv_fp8x2_storage_t*>(&eight);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const float2 v = {i + j < k ? float(row[i + j]) * inverse : 0.0f,
                        i + j + 1 < k ? float(row[i + j + 1]) * inverse : 0.0f};
      pair[j / 2] = __nv_cvt_float2_to_fp8x2(v, __NV_SATFINITE, __NV_E4M3);
    }
    *reinterpret_cast<uint2*>(to + i) = eight;
  }
}

}  // namespace

void round_rows(const void* x, int64_t x_stride, int m, int k, int width, bool bfloat16, uint8_t* rounded,
                float* scales, int device, void* stream) {
  const OnDevice on(device);
  const auto to = static_cast<cudaStream_t>(stream);
  if (bfloat16) {
    round_rows<<<m, kThreads, 0, to>>>(static_cast<const __nv_bfloat16*>(x), x_stride, k, width, rounded, scales);
  } else {
    round_rows<<<m, kThreads, 0, to>>>(static_cast<const __half*>(x), x_stride, k, width, rounded, scales);
  }
  check(cudaGetLastError(), "launch of the rounding kernel");
}

}  // namespace ajour::cuda
