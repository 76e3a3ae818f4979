// Runs a decode kernel's own code on the CPU: decode PROBLEM RESULT. The problem file holds 64-bit integers (below),
// then the tensors; the result is y as its bits.
#include <cstdio>
#include <fstream>

#include "cuda/bitmap_decode.cuh"
#include "cuda/dense_decode.cuh"
#include "cuda/gap_decode.cuh"
#include "cuda/lanes_decode.cuh"
#include "memory/check.h"
#include "problem.h"

namespace ajour::cuda {
namespace {

using emulator::Aligned;
using emulator::read;

struct Problem {
  int64_t kind;  // one of Kind
  int64_t m, n, k, keep, group, bfloat16, activation, bulk, processors, block_shared, blocks, stages, seed, x_stride;
  int64_t slab_bytes, index_count, room, has_bias, has_residual, x_offset, order_count, launches;
};

enum Kind { kNM, kBitmap, kLanes, kGaps, kDense };

template <class Body>
void each_block(const Problem& p, int blocks, int threads, int64_t shared_bytes, const DecodeCall& call, int64_t x_size,
                const Body& body) {
  const emulator::Readable readable{{call.slabs, size_t(p.slab_bytes)},
                                    {reinterpret_cast<const uint8_t*>(call.x), size_t(2 * x_size)}};
  emulator::each_block(p.seed, blocks, threads, shared_bytes, readable, body);
}

template <class Decoder, Float16Kind Kind, int TOKENS>
void run(const Problem& p, const Decoder& decoder, const DecodeCall& call, int64_t x_size) {
  each_block(p, call.shape.stripes.stripes, kDecodeWarps * kWarp, call.shape.shared_bytes, call, x_size,
             [&](uint8_t* shared) { StripeLinear<Decoder, Kind, TOKENS>(decoder, call, shared).run(); });
}

#ifdef ONLY_2_4  // in bfloat16 and for 8 rows: a build for planted bugs takes a third of the time
void run(const Problem& p, const NMSlabs& w, const DecodeCall& call, int64_t x_size) {
  run<SparseMma, Float16Kind::bfloat16, 8>(p, SparseMma{w}, call, x_size);
}
#else
template <class Decoder, Float16Kind Kind>
void run(const Problem& p, const Decoder& decoder, const DecodeCall& call, int64_t x_size) {
  switch (call.shape.tokens) {
    case 8:
      return run<Decoder, Kind, 8>(p, decoder, call, x_size);
    case 16:
      return run<Decoder, Kind, 16>(p, decoder, call, x_size);
    case 32:
      return run<Decoder, Kind, 32>(p, decoder, call, x_size);
    default:
      if constexpr (Decoder::kMostTokens == 64) run<Decoder, Kind, 64>(p, decoder, call, x_size);
  }
}

template <class Decoder>
void run(const Problem& p, const Decoder& decoder, const DecodeCall& call, int64_t x_size) {
  if (p.bfloat16) return run<Decoder, Float16Kind::bfloat16>(p, decoder, call, x_size);
  run<Decoder, Float16Kind::float16>(p, decoder, call, x_size);
}

template <int ROWS>
void run_lanes(const Problem& p, const NMSlabs& w, const DecodeCall& call, int64_t x_size) {
  if (p.bfloat16) return run<SparseLanes<ROWS>, Float16Kind::bfloat16, 8>(p, {w}, call, x_size);
  run<SparseLanes<ROWS>, Float16Kind::float16, 8>(p, {w}, call, x_size);
}

void run(const Problem& p, const NMSlabs& w, const DecodeCall& call, int64_t x_size) {
  if (p.kind == kBitmap) return run(p, BitmapDecoder{}, call, x_size);
  if (p.kind == kDense) return run(p, DenseMma{}, call, x_size);
  if (p.kind == kLanes) {
    if (p.m == 1) return run_lanes<1>(p, w, call, x_size);
    if (p.m == 2) return run_lanes<2>(p, w, call, x_size);
    return run_lanes<4>(p, w, call, x_size);
  }
  const auto is = [&](int keep, int group) {  // as in known_decode
    return w.keep == keep && w.group == group && call.shape.tokens <= 32;
  };
  if (is(1, 4)) return run(p, PlacedValues<4, 1>{w}, call, x_size);
  if (is(2, 8)) return run(p, PlacedValues<8, 2>{w}, call, x_size);
  if (is(4, 8)) return run(p, PlacedValues<8, 4>{w}, call, x_size);
  if (w.in_hardware()) return run(p, SparseMma{w}, call, x_size);
  switch (w.group) {
    case 4:
      return run(p, PlacedValues<4>{w}, call, x_size);
    case 8:
      return run(p, PlacedValues<8>{w}, call, x_size);
    case 16:
      return run(p, PlacedValues<16>{w}, call, x_size);
    default:
      return run(p, PlacedValues<32>{w}, call, x_size);
  }
}

template <Float16Kind Kind, int TOKENS>
void run_gaps(const Problem& p, const GapWeight& w, const DecodeCall& call, int64_t x_size) {
  each_block(p, w.shape.blocks * w.layout.spans, kGapWarps * kWarp, w.shape.shared_bytes, call, x_size,
             [&](uint8_t* shared) { GapLinear<Kind, TOKENS>(call, w, shared).run(); });
}

template <Float16Kind Kind>
void run_gaps(const Problem& p, const GapWeight& w, const DecodeCall& call, int64_t x_size) {
  if (w.shape.tokens == 1) return run_gaps<Kind, 1>(p, w, call, x_size);
  if (w.shape.tokens == 2) return run_gaps<Kind, 2>(p, w, call, x_size);
  run_gaps<Kind, 4>(p, w, call, x_size);
}
#endif

// Eight lanes read 16 bytes of x each at once: no two of them from one bank.
template <int GROUP>
void check_x_banks() {
  for (int first = 0; first < 32; first += 8) {
    for (int j = 0; j < 4; ++j) {
      int seen = 0;
      for (int lane = first; lane < first + 8; ++lane) {
        seen |= 1 << PlacedValues<GROUP>::place(lane / 4, lane % 4 * 4 + j) % 8;
      }
      if (seen != 0xff) emulator::fail("x meets a bank twice");
    }
  }
}

void decode_slabs(const Problem& p, DecodeCall& call, const DeviceLimits& limits, int64_t x_size) {
  const bool of_nm = p.kind == kNM || p.kind == kLanes;
  const NMSlabs w = of_nm ? nm_slabs(p.n, p.k, int(p.keep), int(p.group)) : NMSlabs{};
  const int columns = of_nm ? w.columns : p.kind == kBitmap ? BitmapDecoder::kColumns : DenseMma::kColumns;
  call.shape = decode_shape(p.m, {ceil_div(p.n, kSlabRows), ceil_div(p.k, columns), columns, int(p.room)}, limits,
                            int(p.blocks), int(p.stages));
  emulator::launch_all(p.launches, call, call.shape.scratch_bytes, call.shape.stripes.tiles, [&] { run(p, w, call, x_size); });
  std::printf("%d stripes, %d shared, %d stages\n", call.shape.stripes.stripes, int(call.shape.stripes.shared()),
              call.shape.stages);
}

#ifndef ONLY_2_4
void decode_gaps(const Problem& p, DecodeCall& call, const int32_t* order, const DeviceLimits& limits, int64_t x_size) {
  const GapRows layout = gap_rows(p.n, p.k);
  const GapWeight w{layout, order, gap_shape(p.m, layout, limits, int(p.blocks))};
  emulator::launch_all(p.launches, call, w.shape.scratch_bytes, layout.groups(), [&] {
    if (p.bfloat16) return run_gaps<Float16Kind::bfloat16>(p, w, call, x_size);
    run_gaps<Float16Kind::float16>(p, w, call, x_size);
  });
  std::printf("%d blocks, %d spans\n", w.shape.blocks, layout.spans);
}
#endif

void decode(const char* problem, const char* result) {
  std::ifstream in(problem, std::ios::binary);
  const Problem p = read<Problem>(in, 1)[0];
  const int64_t x_size = (p.m - 1) * p.x_stride + p.k;
  const Aligned<uint8_t> slabs(read<uint8_t>(in, p.slab_bytes), 0);
  const Aligned<int32_t> index(read<int32_t>(in, p.index_count), 0);
  const Aligned<int32_t> order(read<int32_t>(in, p.order_count), 0);
  const Aligned<uint16_t> x(read<uint16_t>(in, x_size), p.x_offset);
  const auto bias = read<uint16_t>(in, p.has_bias ? p.n : 0),
             residual = read<uint16_t>(in, p.has_residual ? p.m * p.n : 0);
  std::vector<uint16_t> y(size_t(p.m * p.n), 0x7fc1);
  ptx::kBulk = p.bulk;
  DecodeCall call{};
  call.slabs = slabs.at;
  call.index = p.index_count ? index.at : nullptr;
  call.x = x.at;
  call.x_stride = p.x_stride;
  call.whole_chunks = reinterpret_cast<uintptr_t>(x.at) % 16 == 0 && p.x_stride % 8 == 0;
  call.bias = p.has_bias ? bias.data() : nullptr;
  call.residual = p.has_residual ? residual.data() : nullptr;
  call.y = y.data();
  call.m = int(p.m);
  call.n = int(p.n);
  call.k = int(p.k);
  call.activation = int(p.activation);
  const DeviceLimits limits{int(p.processors), int(p.block_shared), int(p.block_shared * p.blocks + 1024 * p.blocks)};
#ifndef ONLY_2_4
  if (p.kind == kGaps) decode_gaps(p, call, order.at, limits, x_size);
#endif
  if (p.kind != kGaps) decode_slabs(p, call, limits, x_size);
  check_x_banks<4>();
  std::ofstream(result, std::ios::binary).write(reinterpret_cast<const char*>(y.data()), std::streamsize(2 * y.size()));
}

}  // namespace
}  // namespace ajour::cuda

int main(int, char** arguments) { return emulator::run_program(arguments, ajour::cuda::decode); }
