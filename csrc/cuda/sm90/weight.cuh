// Tensor maps of weights, made once. CUTLASS has a map made for each operand in every call, and asks the driver by its
// name for the function that makes them each time.
#pragma once
#include <tuple>

#include "cutlass/gemm/collective/collective_mma.hpp"
#include "memory/remembered.h"

namespace ajour::cuda {

// A main loop of CUTLASS's that has the maps of values and metadata made for the first call with a weight alone. A map
// says where a tensor is and what its sides are, nothing of what lies there: one that outlives its weight is right for
// whatever of the same sides comes to the same place.
template <class MainLoop>
struct WithRememberedWeights : MainLoop {
  using Plain = MainLoop;
  using typename MainLoop::Arguments;
  using typename MainLoop::Params;

  template <class ProblemShape>
  static Params to_underlying_arguments(const ProblemShape& shape, const Arguments& arguments, void* workspace) {
    using Key = std::tuple<const void*, const void*, int, int>;
    using Element = typename MainLoop::TmaInternalElementB;
    static_assert(sizeof(Params) <= 1024, "4 MB of remembered maps at most");
    static Remembered<Key, Params> remembered(4096);

    const auto [n, m, k, batches] = shape;
    Params params = remembered.of(Key(arguments.ptr_A, arguments.ptr_E, n, k),
                                  [&] { return MainLoop::to_underlying_arguments(shape, arguments, workspace); });
    const auto x = cute::make_tensor(cute::recast_ptr<Element>(arguments.ptr_B),
                                     cute::make_layout(cute::make_shape(m, k, batches), arguments.dB));
    params.tma_load_b = cute::make_tma_copy_B_sm90<Element>(
        typename MainLoop::GmemTiledCopyB{}, x, typename MainLoop::SmemLayoutB{}(cute::_, cute::_, cute::Int<0>{}),
        typename MainLoop::TileShape{}, typename MainLoop::DispatchPolicy::ClusterShape{});
    return params;
  }
};

}  // namespace ajour::cuda
