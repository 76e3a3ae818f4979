// 2:4 at many rows on Hopper: `wgmma.sp`, which sm_90a alone has, in CUTLASS's sparse main loop; for 8-bit floats in
// the one that adds its sums up in fp32 outside the tensor cores.
//
// The weight is the operand with the zeros, which must be the left one, so the product is y^T: [n, m] = w @ x^T; its
// columns are y's rows. Each configuration (dtype, tile, cluster) is an object file of its own: cmake/sm90.cmake.
#pragma once
#include <cstdint>

namespace ajour::cuda {

struct Sm90Kernel;

// y: [m, n] = activation(scales * (x: [m, k] @ w.T) + bias: [n]) + residual: [m, n], in 16-bit floats.
struct Sm90Call {
  const Sm90Kernel* kernel;
  const void* values;       // [n, k / 2]: the canonical values
  const uint8_t* metadata;  // layout/sm90_metadata.h; of 8-bit values the canonical codes, as that says
  const float* w_scales;    // [n], of 8-bit values alone
  const void* x;            // rows x_stride elements apart
  int64_t x_stride;
  const float* x_scales;  // [m], of 8-bit values alone
  const void* bias;       // or null
  const void* residual;   // or null
  void* y;
  uint8_t* scratch;  // scratch_bytes(call)
  int m, n, k;
  int activation;  // as in terms/problem.py: none, relu, gelu, gelu_tanh, silu
  bool stream;     // whether the tiles of the last wave are cut along k, so that all processors end together
  int swizzle;     // tiles of x that are multiplied side by side, for the L2 cache: 1, 2, 4 or 8
  int processors;
};

// What is multiplied; y, bias and residual are of the same dtype, those of e4m3 bfloat16.
enum class Sm90Dtype { bfloat16, float16, e4m3 };

// A tile of TILE_N features of w by TILE_M rows of x, TILE_K columns at a time; CLUSTER_N tiles beside each other share
// the rows of x, CLUSTER_M the features, each loaded once and sent to all.
template <Sm90Dtype DTYPE, int TILE_N, int TILE_M, int TILE_K, int CLUSTER_N, int CLUSTER_M>
struct Sm90Linear {
  static int64_t scratch_bytes(const Sm90Call& call);
  // Launches on `stream` of the current device and returns; safe while a graph is captured. The operands must be what
  // cuda/sm90/operands.h takes. Throws KernelError if CUDA refuses.
  static void run(const Sm90Call& call, void* stream);
};

// A configuration that was built.
struct Sm90Kernel {
  const char* name;
  const char* dtype;
  int bytes;  // of one value, and of one element of x
  int64_t (*scratch_bytes)(const Sm90Call& call);
  void (*run)(const Sm90Call& call, void* stream);
};

}  // namespace ajour::cuda
