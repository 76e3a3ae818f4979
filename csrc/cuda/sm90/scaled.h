// 2:4 in e4m3 at many rows on Hopper: `wgmma.sp` on 8-bit floats, in CUTLASS's sparse main loop that adds its sums up
// in fp32 outside the tensor cores; and the rounding of x that comes before it.
//
// The metadata of 8-bit values are the canonical codes in columns of 128: [k / 128][rows][16 bytes], rows padded as
// layout/sm90_metadata.h says and k to the 256 columns of a tile: TMA's zeros are no legal code. As with 16 bits the
// product is y^T = w @ x^T.
#pragma once
#include <cstdint>

namespace ajour::cuda {

// y: [m, n] = activation(w_scales * x_scales * (x @ w.T) + bias: [n]) + residual: [m, n], y, bias and residual
// bfloat16.
struct Sm90ScaledCall {
  const void* values;       // [n, k / 2] e4m3: the canonical values of a ScaledNMMatrix
  const uint8_t* metadata;  // padded codes
  const float* w_scales;    // [n]
  const void* x;            // [m, k] e4m3
  const float* x_scales;    // [m]
  const void* bias;         // or null
  const void* residual;     // or null
  void* y;
  uint8_t* scratch;  // scratch_bytes(call)
  int m, n, k;
  int activation;  // as in terms/problem.py: none, relu, gelu, gelu_tanh, silu
  bool stream;     // whether the tiles of the last wave are cut along k, so that all processors end together
  int swizzle;     // tiles of x that are multiplied side by side, for the L2 cache: 1, 2, 4 or 8
  int processors;
};

int64_t sm90_scaled_scratch_bytes(const Sm90ScaledCall& call);
// Launches on `stream` of the current device and returns; safe while a graph is captured. Values, metadata, x, residual
// and y must be aligned to 16 bytes, n be a multiple of 8 and k of 32. Throws KernelError if they are not or CUDA
// refuses.
void sm90_scaled_linear(const Sm90ScaledCall& call, void* stream);

}  // namespace ajour::cuda
