// What happens to a sum of the CUTLASS kernels before it is stored, as nodes of CUTLASS's epilogue tree.
#pragma once
#include "cuda/sm90/linear.h"
#include "cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp"

namespace ajour::cuda {

// The activations of terms/problem.py. CUTLASS unrolls the epilogue over all sums of a thread, so each must be a few
// instructions: erff where the decode kernels have erfcf, approximate quotients and exponentials. Their errors are a
// few units of 2^-23 of |v|, below what rounding y to 16 bits leaves. NaN stays NaN.
template <int ACTIVATION>
__device__ __forceinline__ float activated(float v) {
  if constexpr (ACTIVATION == 1) return v < 0.0f ? 0.0f : v;
  if constexpr (ACTIVATION == 2) return 0.5f * v * (1.0f + erff(0.70710678118654752f * v));
  if constexpr (ACTIVATION == 3) {  // (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z))
    return __fdividef(v, 1.0f + __expf(-1.5957691216057308f * (v + 0.044715f * v * v * v)));
  }
  if constexpr (ACTIVATION == 4) return __fdividef(v, 1.0f + __expf(-v));
  return v;
}

// activation(sum + bias) + residual, in float.
struct FinishArguments {
  int activation = 0;  // as in terms/problem.py
};

template <class T>
struct Finish {  // CUTLASS asks it for its arguments alone
  using Arguments = FinishArguments;
};

template <int N, bool REGISTERS>
struct Finish<cutlass::Array<float, N, REGISTERS>> {
  using Arguments = FinishArguments;
  using Values = cutlass::Array<float, N, REGISTERS>;

  __device__ __forceinline__ Values operator()(const Values& sums, const Values& bias, const Values& residual,
                                               const FinishArguments& wanted) const {
    switch (wanted.activation) {  // the same for all: one branch for N values
      case 0:
        return all<0>(sums, bias, residual);
      case 1:
        return all<1>(sums, bias, residual);
      case 2:
        return all<2>(sums, bias, residual);
      case 3:
        return all<3>(sums, bias, residual);
      default:
        return all<4>(sums, bias, residual);
    }
  }

 private:
  template <int ACTIVATION>
  __device__ __forceinline__ static Values all(const Values& sums, const Values& bias, const Values& residual) {
    Values y;
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = activated<ACTIVATION>(sums[i] + bias[i]) + residual[i];
    return y;
  }
};

// activation(w_scale * x_scale * sum + bias) + residual, in float. Powers of two: the scales round nothing.
template <class T>
struct ScaledFinish {
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

// The residual [m, n], or zeros where there is none: CUTLASS's own node always loads, and multiplying what was not
// loaded by zero would keep a NaN.
struct Residual : cutlass::epilogue::fusion::Sm90VisitorImpl<> {
  struct SharedStorage {};
  struct Arguments {
    bool present = false;
  };
  using Params = Arguments;

  template <class Shape>
  static constexpr Params to_underlying_arguments(const Shape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class Shape>
  static bool can_implement(const Shape&, const Arguments&) {
    return true;
  }
  template <class Shape>
  static size_t get_workspace_size(const Shape&, const Arguments&) {
    return 0;
  }
  template <class Shape>
  static cutlass::Status initialize_workspace(const Shape&, const Arguments&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }

  __host__ __device__ Residual() {}
  __host__ __device__ Residual(const Params& params, const SharedStorage&) : present(params.present) {}
  __device__ bool is_producer_load_needed() const { return present; }
  __device__ bool is_C_load_needed() const { return present; }

  template <class Loaded>
  struct ConsumerStoreCallbacks : cutlass::epilogue::fusion::EmptyConsumerStoreCallbacks {
    __device__ ConsumerStoreCallbacks(const Loaded& loaded, bool present) : loaded(loaded), present(present) {}

    using Value = typename Loaded::value_type;

    template <class Sum, int N>
    __device__ cutlass::Array<Value, N> visit(const cutlass::Array<Sum, N>&, int at, int, int) {
      cutlass::Array<Value, N> found;
      found.clear();
      if (present) found = cute::recast<cutlass::Array<Value, N>>(loaded)(at);
      return found;
    }

    const Loaded& loaded;
    const bool present;
  };

  template <bool, class... Args>
  __device__ auto get_consumer_store_callbacks(const cutlass::epilogue::fusion::ConsumerStoreArgs<Args...>& args) {
    return ConsumerStoreCallbacks<cute::remove_cvref_t<decltype(args.tCrC)>>(args.tCrC, present);
  }

  bool present = false;
};

// The trees: what ends a product whose y is of Element, in tiles of Tile, and its arguments.
template <class Element, class Tile>
struct Sm90Finish {
  template <class T>
  using OfFeature =  // may stand anywhere
      cutlass::epilogue::fusion::Sm90ColBroadcast<0, Tile, T, float, cute::Stride<cute::_1, cute::_0, int64_t>, 1>;
  using OfRow =
      cutlass::epilogue::fusion::Sm90RowBroadcast<0, Tile, float, float, cute::Stride<cute::_0, cute::_1, int64_t>, 1>;
  using Sum = cutlass::epilogue::fusion::Sm90AccFetch;
  template <template <class> class Finished>
  using Computed =
      cutlass::epilogue::fusion::Sm90Compute<Finished, Element, float, cutlass::FloatRoundStyle::round_to_nearest>;
  using Plain = cutlass::epilogue::fusion::Sm90EVT<Computed<Finish>, Sum, OfFeature<Element>, Residual>;
  using Scaled = cutlass::epilogue::fusion::Sm90EVT<Computed<ScaledFinish>, Sum, OfFeature<float>, OfRow,
                                                    OfFeature<Element>, Residual>;

  static typename Plain::Arguments plain(const Sm90Call& call) {
    return {{}, {static_cast<const Element*>(call.bias)}, {call.residual != nullptr}, {call.activation}};
  }
  static typename Scaled::Arguments scaled(const Sm90Call& call) {
    return {{},
            {call.w_scales},
            {call.x_scales},
            {static_cast<const Element*>(call.bias)},
            {call.residual != nullptr},
            {call.activation}};
  }
};

}  // namespace ajour::cuda
