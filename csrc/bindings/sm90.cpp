// 2:4 at many rows on Hopper: its metadata (without CUDA too), the configurations that were built, the product; and the
// rounding of x to e4m3 that comes before the one of 8-bit floats.
#include <string>

#include "bindings/bindings.h"
#include "layout/sm90_metadata.h"
#ifdef AJOUR_HAS_CUDA
#include "cuda/on_device.h"
#include "cuda/round_rows.h"
#include "cuda/sm90/kernels.h"
#include "cuda/sm90/operands.h"
#include "cuda/sm90_metadata.h"
#endif

namespace ajour::bindings {
namespace {

void bind_metadata(py::module_& m) {
  py::class_<Sm90Metadata>(m, "Sm90Metadata")
      .def(py::init([](int64_t n, int64_t k) { return Sm90Metadata{n, k}; }))
      .def_property_readonly("bytes", &Sm90Metadata::bytes);
  m.def(
      "pack_sm90_metadata",
      [](const Sm90Metadata& layout, Address positions, Address metadata) {
        pack_sm90_metadata(layout, at<uint8_t>(positions), at<uint8_t>(metadata));
      },
      Unlocked());
  m.def(
      "unpack_sm90_metadata",
      [](const Sm90Metadata& layout, Address metadata, Address positions) {
        unpack_sm90_metadata(layout, at<uint8_t>(metadata), at<uint8_t>(positions));
      },
      Unlocked());
}

#ifdef AJOUR_HAS_CUDA
int64_t metadata_bytes(const cuda::Sm90Call& call) {
  if (call.kernel->bytes == 2) return Sm90Metadata{call.n, call.k}.bytes();
  constexpr int64_t kColumns = Sm90Metadata::kScaledColumns;
  return Sm90Metadata::padded(call.n) * ceil_div(call.k, kColumns) * (kColumns / 8);
}

void bind_products(py::module_& m) {
  m.def("pack_sm90_metadata_cuda",
        [](const Sm90Metadata& layout, Address positions, Address metadata, int device, Address stream) {
          cuda::pack_sm90_metadata(layout, at<uint8_t>(positions), at<uint8_t>(metadata), device, at(stream));
        });
  m.def("unpack_sm90_metadata_cuda",
        [](const Sm90Metadata& layout, Address metadata, Address positions, int device, Address stream) {
          cuda::unpack_sm90_metadata(layout, at<uint8_t>(metadata), at<uint8_t>(positions), device, at(stream));
        });
  m.def("round_rows", [](Address x, int64_t x_stride, int rows, int k, int width, bool bfloat16, Address rounded,
                         Address scales, int device, Address stream) {
    cuda::round_rows(at(x), x_stride, rows, k, width, bfloat16, at<uint8_t>(rounded), at<float>(scales), device,
                     at(stream));
  });
  using cuda::Sm90Call;
  py::class_<Sm90Call>(m, "Sm90Call")
      .def(py::init([](const std::string& dtype, const std::string& config, int rows, int n, int k, bool stream,
                       int swizzle, int processors) {
        Sm90Call call{};
        call.kernel = &cuda::sm90_kernel(config, dtype);
        call.m = rows, call.n = n, call.k = k;
        call.stream = stream, call.swizzle = swizzle, call.processors = processors;
        return call;
      }))
      .def_property_readonly("scratch_bytes", [](const Sm90Call& call) { return call.kernel->scratch_bytes(call); });
  m.def("sm90_linear", [](Sm90Call call, const Lent& values, const Lent& metadata, const Lent& w_scales, Address x,
                          int64_t x_stride, Address x_scales, Address bias, Address residual, Address y,
                          Address scratch, int activation, int device, Address stream) {
    const bool scaled = call.kernel->bytes == 1;
    call.values = at<void>("values", values, int64_t(call.n) * (call.k / 2) * call.kernel->bytes);
    call.metadata = at<uint8_t>("positions", metadata, metadata_bytes(call));
    call.w_scales = at<float>("scales", w_scales, scaled ? int64_t(call.n) * 4 : 0);
    call.x = at(x), call.x_stride = x_stride, call.x_scales = at<float>(x_scales);
    call.bias = at(bias), call.residual = at(residual);
    call.y = at(y), call.scratch = at<uint8_t>(scratch), call.activation = activation;
    cuda::check_sm90_operands(call);
    const cuda::OnDevice on(device);
    call.kernel->run(call, at(stream));
  });
}
#endif

}  // namespace

void bind_sm90(py::module_& m) {
  bind_metadata(m);
  py::dict configs;
  for (const char* dtype : {"bfloat16", "float16", "e4m3"}) {
    py::list names;
#ifdef AJOUR_HAS_CUDA
    for (const cuda::Sm90Kernel& kernel : cuda::sm90_kernels()) {
      if (kernel.dtype == std::string(dtype)) names.append(kernel.name);
    }
#endif
    configs[dtype] = py::tuple(names);  // empty where AJOUR_SM90_DTYPES left it out, or CUTLASS's headers were missing
  }
#ifdef AJOUR_HAS_CUDA
  bind_products(m);
#endif
  m.attr("sm90_configs") = configs;
}

}  // namespace ajour::bindings
