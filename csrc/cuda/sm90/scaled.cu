#include "cuda/on_device.h"
#include "cuda/sm90/epilogue.cuh"
#include "cuda/sm90/scaled.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "layout/sm90_metadata.h"

namespace ajour::cuda {
namespace {

// activation(w_scale * x_scale * sum + bias) + residual, in float. Powers of two: the scales round nothing.
template <class T>
struct ScaledFinish {  // CUTLASS asks it for its arguments alone
  using Arguments = FinishArguments;
};

template <int N, bool REGISTERS>
struct ScaledFinish<cutlass::Array<float, N, REGISTERS>> {
  using Arguments = FinishArguments;
  using Values = cutlass::Array<float, N, REGISTERS>;

  __device__ __forceinline__ Values operator()(const Values& sums, const Values& w_scales, const Values& x_scales,
                                               const Values& bias, const Values& residual,
                                               const FinishArguments& wanted) const {
    Values scaled;
#pragma unroll
    for (int i = 0; i < N; ++i) scaled[i] = sums[i] * w_scales[i] * x_scales[i];
    return Finish<Values>{}(scaled, bias, residual, wanted);
  }
};

namespace fusion = cutlass::epilogue::fusion;
namespace gemm = cutlass::gemm;

using Small = cutlass::float_e4m3_t;
using Large = cutlass::bfloat16_t;
// Two accumulators for each sum, the tensor cores' and the one in fp32 outside them: a tile of 256 features would
// spill.
using Tile = cute::Shape<cute::_128, cute::_128, cute::_256>;
using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
constexpr int kSmallAligned = 16, kLargeAligned = 8;  // elements: TMA moves 16 bytes
constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
using ByRow = cutlass::layout::RowMajor;
using ByColumn = cutlass::layout::ColumnMajor;

using OfFeature = cute::Stride<cute::_1, cute::_0, int64_t>;
using OfRow = cute::Stride<cute::_0, cute::_1, int64_t>;
template <class Element>
using ByFeature = fusion::Sm90ColBroadcast<0, Tile, Element, float, OfFeature, 1>;  // may stand anywhere
using Fusion =
    fusion::Sm90EVT<fusion::Sm90Compute<ScaledFinish, Large, float, kRound>, fusion::Sm90AccFetch, ByFeature<float>,
                    fusion::Sm90RowBroadcast<0, Tile, float, float, OfRow, 1>, ByFeature<Large>, Residual>;
using Shares = cute::Shape<cute::_128, cute::_16>;
using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassSparseTensorOp, Tile, Cluster, Shares, float, float, Large, ByColumn,
    kLargeAligned, Large, ByColumn, kLargeAligned, cutlass::epilogue::TmaWarpSpecializedCooperative,
    Fusion>::CollectiveOp;
using MainLoop = typename gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassSparseTensorOp, Small, ByRow, kSmallAligned, Small, ByColumn,
    kSmallAligned, float, Tile, Cluster,
    gemm::collective::StageCountAutoCarveout<int(sizeof(typename Epilogue::SharedStorage))>,
    gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
using Kernel = gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, MainLoop, Epilogue, gemm::StreamKScheduler>;
using Gemm = gemm::device::GemmUniversalAdapter<Kernel>;
static_assert(Kernel::SharedStorageSize <= gemm::collective::detail::sm90_smem_capacity_bytes, "no room for this tile");
static_assert(Sm90Metadata::kClusterRows % (cute::size<0>(Tile{}) * cute::size<0>(Cluster{})) == 0,
              "a cluster would read beyond the metadata");
static_assert(cute::size<2>(Tile{}) == Sm90Metadata::kScaledColumns, "a tile would read beyond the metadata");

typename Gemm::Arguments arguments(const Sm90ScaledCall& call) {
  using Schedule = gemm::kernel::detail::PersistentTileSchedulerSm90StreamKParams;
  using Config = typename MainLoop::SparseConfig;
  const auto* residual = static_cast<const Large*>(call.residual);
  auto* y = static_cast<Large*>(call.y);
  const cute::Stride<cute::_1, int64_t, int64_t> by_token{{}, call.n, 0};

  typename Gemm::Arguments a{gemm::GemmUniversalMode::kGemm, {call.n, call.m, call.k, 1}};
  a.mainloop.ptr_A = static_cast<const Small*>(call.values);
  a.mainloop.layout_a = Config::fill_layoutA(a.problem_shape);
  a.mainloop.ptr_B = static_cast<const Small*>(call.x);
  a.mainloop.dB = {call.k, {}, 0};
  a.mainloop.ptr_E = call.metadata;
  const int columns = int(ceil_div(call.k, Sm90Metadata::kScaledColumns)) * Sm90Metadata::kScaledColumns;
  a.mainloop.layout_e = Config::fill_layoutE(cute::make_shape(Sm90Metadata::padded(call.n), call.m, columns, 1));
  a.epilogue.thread = {{},
                       {call.w_scales},
                       {call.x_scales},
                       {static_cast<const Large*>(call.bias)},
                       {residual != nullptr},
                       {call.activation}};
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

void accept(cutlass::Status status, const char* what) {
  if (status == cutlass::Status::kSuccess) return;
  cudaGetLastError();  // it is told here; the next call starts afresh
  refuse<KernelError>(what, " of the wgmma.sp kernel in e4m3: ", cutlass::cutlassGetStatusString(status));
}

}  // namespace

int64_t sm90_scaled_scratch_bytes(const Sm90ScaledCall& call) {
  return int64_t(Gemm::get_workspace_size(arguments(call)));
}

void sm90_scaled_linear(const Sm90ScaledCall& call, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  Gemm gemm;
  accept(gemm.initialize(arguments(call), call.scratch, on), "preparation");
  accept(gemm.run(on), "launch");
}

}  // namespace ajour::cuda
