// The one folder that knows Python: addresses in, errors out.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

namespace py = pybind11;

namespace ajour::bindings {

using Address = std::uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_formats(py::module_& m);
void bind_linear(py::module_& m);
void bind_training(py::module_& m);
void bind_projection(py::module_& m);
void bind_decode(py::module_& m);
void bind_sm90(py::module_& m);
void bind_torch_ops(py::module_& m);

}  // namespace ajour::bindings
