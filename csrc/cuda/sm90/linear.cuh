// Sm90Linear out of CUTLASS's parts. Included by one source for each configuration alone: a minute of compiling each.
#pragma once
#include "cuda/on_device.h"
#include "cuda/sm90/epilogue.cuh"
#include "cuda/sm90/linear.h"
#include "cuda/sm90/operands.h"
#include "cuda/sm90/weight.cuh"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "layout/sm90_metadata.h"

namespace ajour::cuda {

// In: of the values and of x; Out: of y, bias and residual.
template <Sm90Dtype DTYPE>
struct Sm90Floats {
  using In = std::conditional_t<DTYPE == Sm90Dtype::bfloat16, cutlass::bfloat16_t, cutlass::half_t>;
  using Out = In;
};
template <>
struct Sm90Floats<Sm90Dtype::e4m3> {
  using In = cutlass::float_e4m3_t;
  using Out = cutlass::bfloat16_t;
};

template <Sm90Dtype DTYPE, int TILE_N, int TILE_M, int TILE_K, int CLUSTER_N, int CLUSTER_M>
struct Sm90Parts {
  static constexpr bool kScaled = DTYPE == Sm90Dtype::e4m3;
  using In = typename Sm90Floats<DTYPE>::In;
  using Out = typename Sm90Floats<DTYPE>::Out;
  using Tile = cute::Shape<cute::Int<TILE_N>, cute::Int<TILE_M>, cute::Int<TILE_K>>;
  using Cluster = cute::Shape<cute::Int<CLUSTER_N>, cute::Int<CLUSTER_M>, cute::_1>;
  static constexpr int kInAligned = kSm90Aligned / sizeof(In), kOutAligned = kSm90Aligned / sizeof(Out);
  using ByRow = cutlass::layout::RowMajor;
  using ByColumn = cutlass::layout::ColumnMajor;

  using Shares = cute::Shape<cute::_128, cute::_16>;  // what the epilogue takes at once: little, for a third stage
  using End = Sm90Finish<Out, Tile>;
  using Fusion = std::conditional_t<kScaled, typename End::Scaled, typename End::Plain>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassSparseTensorOp, Tile, Cluster, Shares, float, float, Out, ByColumn,
      kOutAligned, Out, ByColumn, kOutAligned, cutlass::epilogue::TmaWarpSpecializedCooperative, Fusion>::CollectiveOp;
  using MainLoop = WithRememberedWeights<typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassSparseTensorOp, In, ByRow, kInAligned, In, ByColumn, kInAligned, float,
      Tile, Cluster, cutlass::gemm::collective::StageCountAutoCarveout<int(sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, MainLoop, Epilogue,
                                                      cutlass::gemm::StreamKScheduler>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  static_assert(Kernel::SharedStorageSize <= cutlass::gemm::collective::detail::sm90_smem_capacity_bytes,
                "no room for this tile");
  static_assert(Sm90Metadata::kClusterRows % (TILE_N * CLUSTER_N) == 0, "a cluster would read beyond the metadata");
  static_assert(TILE_K == (kScaled ? Sm90Metadata::kScaledColumns : Sm90Metadata::kColumns),
                "the metadata are padded to the columns of a tile, and those of 16 bits ordered by them");

  static typename Gemm::Arguments arguments(const Sm90Call& call) {
    using Schedule = cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90StreamKParams;
    using Config = typename MainLoop::SparseConfig;
    const auto* residual = static_cast<const Out*>(call.residual);
    auto* y = static_cast<Out*>(call.y);
    const cute::Stride<cute::_1, int64_t, int64_t> by_token{{}, call.n, 0};
    const int columns = int(ceil_div(call.k, TILE_K)) * TILE_K;

    typename Gemm::Arguments a{cutlass::gemm::GemmUniversalMode::kGemm, {call.n, call.m, call.k, 1}};
    a.mainloop.ptr_A = static_cast<const In*>(call.values);
    a.mainloop.layout_a = Config::fill_layoutA(a.problem_shape);
    a.mainloop.ptr_B = static_cast<const In*>(call.x);
    a.mainloop.dB = {call.x_stride, {}, 0};
    a.mainloop.ptr_E = call.metadata;
    a.mainloop.layout_e = Config::fill_layoutE(cute::make_shape(Sm90Metadata::padded(call.n), call.m, columns, 1));
    if constexpr (kScaled) {
      a.epilogue.thread = End::scaled(call);
    } else {
      a.epilogue.thread = End::plain(call);
    }
    a.epilogue.ptr_C = residual ? residual : y;  // a tensor map needs an address, even if nobody loads
    a.epilogue.dC = by_token;
    a.epilogue.ptr_D = y;
    a.epilogue.dD = by_token;
    a.hw_info.sm_count = call.processors;
    a.scheduler.max_swizzle_size = call.swizzle;
    a.scheduler.raster_order = Schedule::RasterOrderOptions::AlongM;
    a.scheduler.decomposition_mode =
        call.stream ? Schedule::DecompositionMode::StreamK : Schedule::DecompositionMode::DataParallel;
    a.scheduler.reduction_mode = Schedule::ReductionMode::Deterministic;
    return a;
  }
};

template <Sm90Dtype DTYPE, int TILE_N, int TILE_M, int TILE_K, int CLUSTER_N, int CLUSTER_M>
int64_t Sm90Linear<DTYPE, TILE_N, TILE_M, TILE_K, CLUSTER_N, CLUSTER_M>::scratch_bytes(const Sm90Call& call) {
  using Parts = Sm90Parts<DTYPE, TILE_N, TILE_M, TILE_K, CLUSTER_N, CLUSTER_M>;
  return int64_t(Parts::Gemm::get_workspace_size(Parts::arguments(call)));
}

template <Sm90Dtype DTYPE, int TILE_N, int TILE_M, int TILE_K, int CLUSTER_N, int CLUSTER_M>
void Sm90Linear<DTYPE, TILE_N, TILE_M, TILE_K, CLUSTER_N, CLUSTER_M>::run(const Sm90Call& call, void* stream) {
  using Parts = Sm90Parts<DTYPE, TILE_N, TILE_M, TILE_K, CLUSTER_N, CLUSTER_M>;
  const auto on = static_cast<cudaStream_t>(stream);
  typename Parts::Gemm gemm;
  const auto accept = [](cutlass::Status status, const char* what) {
    if (status == cutlass::Status::kSuccess) return;
    cudaGetLastError();  // it is told here; the next call starts afresh
    refuse<KernelError>(what, " of a wgmma.sp kernel: ", cutlass::cutlassGetStatusString(status));
  };
  accept(gemm.initialize(Parts::arguments(call), call.scratch, on), "preparation");
  accept(gemm.run(on), "launch");
}

}  // namespace ajour::cuda
