// Runs a decode kernel's own code on the CPU: decode PROBLEM RESULT. The problem file holds 64-bit integers (below),
// then the tensors; the result is y as its bits.
#include <cstdio>
#include <fstream>
#include <stdexcept>

#include "cuda/bitmap_decode.cuh"
#include "cuda/nm_decode.cuh"
#include "memory/check.h"

namespace ajour::cuda {
namespace {

struct Problem {
  int64_t kind;  // 0: N:M, 1: bitmap
  int64_t m, n, k, keep, group, bfloat16, activation, bulk, processors, block_shared, blocks, stages, seed, x_stride;
  int64_t slab_bytes, index_count, room, has_bias, has_residual, x_offset;
};

template <class T>
std::vector<T> read(std::ifstream& in, int64_t count) {
  std::vector<T> found(static_cast<size_t>(count));
  in.read(reinterpret_cast<char*>(found.data()), std::streamsize(found.size() * sizeof(T)));
  if (!in) throw std::runtime_error("the problem file is too short");
  return found;
}

template <class T>
struct Aligned {  // by 16 bytes, and a few elements on
  Aligned(const std::vector<T>& from, int64_t offset) : memory(from.size() + 16 + size_t(offset)) {
    at = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16 / sizeof(T) + offset;
    std::copy(from.begin(), from.end(), at);
  }
  std::vector<T> memory;
  T* at;
};

template <class Decoder, Float16Kind Kind, int TOKENS>
void run(const Problem& p, const Decoder& decoder, const DecodeCall& call, int64_t x_size) {
  std::vector<int> order;
  for (int i = 0; i < call.shape.stripes.stripes; ++i) order.push_back(i);
  std::mt19937_64 random(static_cast<uint64_t>(p.seed));
  std::shuffle(order.begin(), order.end(), random);
  for (int index : order) {
    emulator::Block block(
        index, random(), [&](uint8_t* shared) { StripeLinear<Decoder, Kind, TOKENS>(decoder, call, shared).run(); },
        size_t(call.shape.shared_bytes));
    block.readable = {{call.slabs, size_t(p.slab_bytes)},
                      {reinterpret_cast<const uint8_t*>(call.x), size_t(2 * x_size)}};
    block.run();
  }
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
      return run<Decoder, Kind, 64>(p, decoder, call, x_size);
  }
}

template <class Decoder>
void run(const Problem& p, const Decoder& decoder, const DecodeCall& call, int64_t x_size) {
  if (p.bfloat16) return run<Decoder, Float16Kind::bfloat16>(p, decoder, call, x_size);
  run<Decoder, Float16Kind::float16>(p, decoder, call, x_size);
}

void run(const Problem& p, const NMSlabs& w, const DecodeCall& call, int64_t x_size) {
  if (p.kind) return run(p, BitmapDecoder{}, call, x_size);
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

void decode(const char* problem, const char* result) {
  std::ifstream in(problem, std::ios::binary);
  const Problem p = read<Problem>(in, 1)[0];
  const int64_t x_size = (p.m - 1) * p.x_stride + p.k;
  const Aligned<uint8_t> slabs(read<uint8_t>(in, p.slab_bytes), 0);
  const Aligned<int32_t> index(read<int32_t>(in, p.index_count), 0);
  const Aligned<uint16_t> x(read<uint16_t>(in, x_size), p.x_offset);
  const auto bias = read<uint16_t>(in, p.has_bias ? p.n : 0),
             residual = read<uint16_t>(in, p.has_residual ? p.m * p.n : 0);
  const NMSlabs w = p.kind ? NMSlabs{} : nm_slabs(p.n, p.k, int(p.keep), int(p.group));
  const int columns = p.kind ? BitmapDecoder::kColumns : w.columns;
  DecodeCall call{};
  call.shape = decode_shape(p.m, {ceil_div(p.n, kSlabRows), ceil_div(p.k, columns), columns, int(p.room)},
                            {int(p.processors), int(p.block_shared), int(p.block_shared * p.blocks + 1024 * p.blocks)},
                            int(p.blocks), int(p.stages));
  std::vector<uint16_t> y(size_t(p.m * p.n), 0x7fc1);
  std::vector<float> scratch(size_t(call.shape.scratch_bytes / 4 + 4), NAN);
  uint8_t* parts = reinterpret_cast<uint8_t*>(scratch.data());
  parts += (16 - reinterpret_cast<uintptr_t>(parts) % 16) % 16;
  if (call.shape.scratch_bytes) std::memset(parts, 0, size_t(call.shape.counter_bytes()));
  ptx::kBulk = p.bulk;
  call.slabs = slabs.at;
  call.index = p.index_count ? index.at : nullptr;
  call.x = x.at;
  call.x_stride = p.x_stride;
  call.whole_chunks = reinterpret_cast<uintptr_t>(x.at) % 16 == 0 && p.x_stride % 8 == 0;
  call.bias = p.has_bias ? bias.data() : nullptr;
  call.residual = p.has_residual ? residual.data() : nullptr;
  call.y = y.data();
  call.scratch = parts;
  call.m = int(p.m);
  call.n = int(p.n);
  call.k = int(p.k);
  call.activation = int(p.activation);
  run(p, w, call, x_size);
  check_x_banks<4>();
  std::ofstream(result, std::ios::binary).write(reinterpret_cast<const char*>(y.data()), std::streamsize(2 * y.size()));
  std::printf("%d stripes, %d shared, %d stages\n", call.shape.stripes.stripes, int(call.shape.stripes.shared()),
              call.shape.stages);
}

}  // namespace
}  // namespace ajour::cuda

int main(int, char** arguments) {
  try {
    ajour::cuda::decode(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
