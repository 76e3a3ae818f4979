// The one file that knows Python: addresses in, errors out.
#include <pybind11/pybind11.h>

#include "memory/parallel.h"
#ifdef AJOUR_HAS_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
#ifdef AJOUR_HAS_CUDA
  m.attr("has_cuda") = true;
  m.def("device_count", &ajour::cuda::device_count);
#else
  m.attr("has_cuda") = false;
  m.def("device_count", [] { return 0; });
#endif
  m.def("bind_thread_pool", &ajour::bind_thread_pool);
}
