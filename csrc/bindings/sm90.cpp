// 2:4 at many rows on Hopper: its metadata (without CUDA too), the configurations that were built, the product.
#include "bindings/bindings.h"
#include "layout/sm90_metadata.h"
#ifdef AJOUR_HAS_CUDA
#include <pybind11/stl.h>

#include "cuda/on_device.h"
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
void bind_products(py::module_& m) {
  m.def("pack_sm90_metadata_cuda",
        [](const Sm90Metadata& layout, Address positions, Address metadata, int device, Address stream) {
          cuda::pack_sm90_metadata(layout, at<uint8_t>(positions), at<uint8_t>(metadata), device, at(stream));
        });
  m.def("unpack_sm90_metadata_cuda",
        [](const Sm90Metadata& layout, Address metadata, Address positions, int device, Address stream) {
          cuda::unpack_sm90_metadata(layout, at<uint8_t>(metadata), at<uint8_t>(positions), device, at(stream));
        });
  using cuda::Sm90Call;
  py::class_<Sm90Call>(m, "Sm90Call")
      .def(py::init([](int rows, int n, int k, bool stream, int swizzle, int processors) {
        Sm90Call call{};
        call.m = rows, call.n = n, call.k = k;
        call.stream = stream, call.swizzle = swizzle, call.processors = processors;
        return call;
      }))
      .def("scratch_bytes", [](const Sm90Call& call, const std::string& config, bool bfloat16) {
        return cuda::sm90_kernel(config, bfloat16).scratch_bytes(call);
      });
  m.def("sm90_linear", [](Sm90Call call, const std::string& config, bool bfloat16, Address values, Address metadata,
                          Address x, int64_t x_stride, Address bias, Address residual, Address y, Address scratch,
                          int activation, int device, Address stream) {
    call.values = at(values), call.metadata = at<uint8_t>(metadata);
    call.x = at(x), call.x_stride = x_stride;
    call.bias = at(bias), call.residual = at(residual);
    call.y = at(y), call.scratch = at<uint8_t>(scratch), call.activation = activation;
    cuda::check_sm90_operands({call.values, call.metadata, call.x, call.residual, call.y, call.scratch}, call.n, call.k,
                              16, x_stride, 8);
    const cuda::OnDevice on(device);
    cuda::sm90_kernel(config, bfloat16).run(call, at(stream));
  });
}
#endif

}  // namespace

void bind_sm90(py::module_& m) {
  bind_metadata(m);
  py::list configs;
#ifdef AJOUR_HAS_CUDA
  bind_products(m);
  for (const cuda::Sm90Kernel& kernel : cuda::sm90_kernels()) {
    if (kernel.bfloat16) configs.append(kernel.name);
  }
#endif
  m.attr("sm90_configs") = py::tuple(configs);  // empty where CUTLASS's headers were missing
}

}  // namespace ajour::bindings
