// Runs the 2:4 kernel for many rows on the CPU, by its own code: sm80 PROBLEM RESULT. The problem file holds 64-bit
// integers (below), then the tensors; the result is y as its bits.
#include <cstdio>
#include <fstream>

#include "cuda/nm_sm80.cuh"
#include "problem.h"

namespace ajour::cuda {
namespace {

using emulator::Aligned;
using emulator::read;

struct Problem {
  int64_t m, n, k, bfloat16, activation, panels, warps_m, tokens, stages, blocks, processors, block_shared, seed;
  int64_t x_stride, slab_bytes, has_bias, has_residual, y_offset, launches;
};

template <Float16Kind Kind, int PANELS, int WARPS_M, int TOKENS>
void run(const Problem& p, const Sm80Call& call, int64_t x_size) {
  const emulator::Readable readable{{call.slabs, size_t(p.slab_bytes)},
                                    {reinterpret_cast<const uint8_t*>(call.x), size_t(2 * x_size)}};
  emulator::each_block(p.seed, call.shape.stripes.stripes, PANELS * WARPS_M * kWarp, call.shape.shared_bytes, readable,
                       [&](uint8_t* shared) { Sm80Linear<Kind, PANELS, WARPS_M, TOKENS>(call, shared).run(); });
}

template <Float16Kind Kind>
void run(const Problem& p, const Sm80Call& call, int64_t x_size) {
#ifndef ONLY_SMALL  // a build for planted bugs takes a third of the time
  if (call.shape.tile == Sm80Tile{4, 2, 64}) return run<Kind, 4, 2, 64>(p, call, x_size);
  if (call.shape.tile == Sm80Tile{2, 4, 64}) return run<Kind, 2, 4, 64>(p, call, x_size);
  if (call.shape.tile == Sm80Tile{2, 2, 64}) return run<Kind, 2, 2, 64>(p, call, x_size);
#endif
  run<Kind, 2, 2, 32>(p, call, x_size);
}

void multiply(const char* problem, const char* result) {
  std::ifstream in(problem, std::ios::binary);
  const Problem p = read<Problem>(in, 1)[0];
  const int64_t x_size = (p.m - 1) * p.x_stride + p.k;
  const Aligned<uint8_t> slabs(read<uint8_t>(in, p.slab_bytes));
  const Aligned<uint16_t> x(read<uint16_t>(in, x_size)), bias(read<uint16_t>(in, p.has_bias ? p.n : 0)),
      residual(read<uint16_t>(in, p.has_residual ? p.m * p.n : 0)),
      y(std::vector<uint16_t>(size_t(p.m * p.n), 0x7fc1), p.y_offset);
  Sm80Call call{};
  call.shape = sm80_shape(p.m, p.n, p.k, {int(p.panels), int(p.warps_m), int(p.tokens)}, int(p.stages), int(p.blocks),
                          int(p.processors), p.block_shared);
  call.slabs = slabs.at;
  call.x = x.at;
  call.x_stride = p.x_stride;
  call.bias = p.has_bias ? bias.at : nullptr;
  call.residual = p.has_residual ? residual.at : nullptr;
  call.y = y.at;
  call.whole_chunks = p.n % 8 == 0 && p.y_offset == 0;
  call.m = int(p.m);
  call.n = int(p.n);
  call.k = int(p.k);
  call.activation = int(p.activation);
  emulator::launch_all(p.launches, call, call.shape.scratch_bytes, call.shape.stripes.tiles, [&] {
    if (p.bfloat16) return run<Float16Kind::bfloat16>(p, call, x_size);
    run<Float16Kind::float16>(p, call, x_size);
  });
  std::ofstream(result, std::ios::binary).write(reinterpret_cast<const char*>(y.at), std::streamsize(2 * p.m * p.n));
  std::printf("%d tiles, %d stripes, %d shared, %d stages\n", call.shape.stripes.tiles, call.shape.stripes.stripes,
              int(call.shape.stripes.shared()), call.shape.stages);
}

}  // namespace
}  // namespace ajour::cuda

int main(int, char** arguments) { return emulator::run_program(arguments, ajour::cuda::multiply); }
