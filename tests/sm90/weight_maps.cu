// The tensor maps of a product's operands, with those of the weight remembered and as CUTLASS makes them: prints in how
// many calls they differ, and how many were made. Needs no driver: its function for making one stands below.
#include <cstdio>
#include <cstring>
#include <vector>

#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL
#include "cuda/sm90/linear.cuh"

static int made = 0;

// Everything that a map depends on, in place of the driver's encoding of it.
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* sides, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  ++made;
  uint64_t* to = reinterpret_cast<uint64_t*>(map);
  std::memset(to, 0, sizeof *map);
  to[0] = uint64_t(type) << 40 | uint64_t(rank) << 32 | interleave << 24 | swizzle << 16 | promotion << 8 | fill;
  to[1] = reinterpret_cast<uint64_t>(address);
  for (cuuint32_t i = 0; i < rank; ++i) {
    to[2 + i] = sides[i];
    to[7 + i] = (i + 1 < rank ? strides[i] << 16 : 0) | box[i] << 4 | steps[i];
  }
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeIm2col(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const int*, const int*, cuuint32_t, cuuint32_t, const cuuint32_t*,
                                 CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_UNKNOWN;
}

namespace {

using namespace ajour::cuda;

template <class Loop, class Arguments>
std::vector<char> maps(const Arguments& arguments) {
  const auto params = Loop::to_underlying_arguments(arguments.problem_shape, arguments.mainloop, nullptr);
  std::vector<char> found;
  for (const CUtensorMap* map : {params.tma_load_a.get_tma_descriptor(), params.tma_load_e.get_tma_descriptor(),
                                 params.tma_load_b.get_tma_descriptor()}) {
    const char* at = reinterpret_cast<const char*>(map);
    found.insert(found.end(), at, at + sizeof *map);
  }
  return found;
}

}  // namespace

int main() {
  using Parts = Sm90Parts<Sm90Dtype::bfloat16, 256, 128, 128, 2, 1>;
  int different = 0, of_first = 0, of_later = 0;
  Sm90Call call{};
  call.processors = 132, call.swizzle = 1;
  const auto at = [](int64_t place) { return reinterpret_cast<uint8_t*>(place << 12); };
  for (int turn = 0; turn < 3; ++turn) {
    for (int weight = 0; weight < 16; ++weight) {  // two places of values, two of metadata, two of each side
      call.values = at(1 + weight % 2), call.metadata = at(11 + weight / 2 % 2);
      call.n = 512 << weight / 4 % 2, call.k = 256 << weight / 8;
      for (int rows : {1, 300}) {
        call.m = rows + turn, call.x = at(21 + rows % 7 + turn), call.x_stride = call.k + 64 * turn;
        const auto arguments = Parts::arguments(call);
        const int before = made;
        const auto remembered = maps<Parts::MainLoop>(arguments);
        (turn || rows > 1 ? of_later : of_first) += made - before;
        different += remembered != maps<Parts::MainLoop::Plain>(arguments);
      }
    }
  }
  std::printf("%d calls differ; %d maps in 16 first calls, %d in 80 later ones\n", different, of_first, of_later);
}
