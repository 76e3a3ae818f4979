// 2:4 in e4m3 on a GPU: rows of x rounded, and the product on Hopper.
#include "bindings/bindings.h"
#ifdef AJOUR_HAS_CUDA
#include "cuda/round_rows.h"
#endif
#ifdef AJOUR_HAS_SM90
#include "cuda/on_device.h"
#include "cuda/sm90/operands.h"
#include "cuda/sm90/scaled.h"
#endif

namespace ajour::bindings {

void bind_scaled(py::module_& m) {
#ifdef AJOUR_HAS_CUDA
  m.def("round_rows", [](Address x, int64_t x_stride, int rows, int k, int width, bool bfloat16, Address rounded,
                         Address scales, int device, Address stream) {
    cuda::round_rows(at(x), x_stride, rows, k, width, bfloat16, at<uint8_t>(rounded), at<float>(scales), device,
                     at(stream));
  });
#endif
#ifdef AJOUR_HAS_SM90
  using cuda::Sm90ScaledCall;
  py::class_<Sm90ScaledCall>(m, "Sm90ScaledCall")
      .def(py::init([](int rows, int n, int k, bool stream, int swizzle, int processors) {
        Sm90ScaledCall call{};
        call.m = rows, call.n = n, call.k = k;
        call.stream = stream, call.swizzle = swizzle, call.processors = processors;
        return call;
      }))
      .def("scratch_bytes", &cuda::sm90_scaled_scratch_bytes);
  m.def("sm90_scaled_linear",
        [](Sm90ScaledCall call, Address values, Address metadata, Address w_scales, Address x, Address x_scales,
           Address bias, Address residual, Address y, Address scratch, int activation, int device, Address stream) {
          call.values = at(values), call.metadata = at<uint8_t>(metadata), call.w_scales = at<float>(w_scales);
          call.x = at(x), call.x_scales = at<float>(x_scales);
          call.bias = at(bias), call.residual = at(residual);
          call.y = at(y), call.scratch = at<uint8_t>(scratch), call.activation = activation;
          cuda::check_sm90_operands({call.values, call.metadata, call.x, call.residual, call.y, call.scratch}, call.n,
                                    call.k, 32, call.k, 16);  // rows of x stand side by side
          const cuda::OnDevice on(device);
          cuda::sm90_scaled_linear(call, at(stream));
        });
  m.attr("has_sm90_scaled") = true;
#else
  m.attr("has_sm90_scaled") = false;
#endif
}

}  // namespace ajour::bindings
