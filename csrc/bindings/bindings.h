// The one folder that knows Python: addresses in, errors out.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

#include "memory/check.h"

namespace py = pybind11;

namespace ajour::bindings {

using Address = std::uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Packed memory that a call lends: where it is, and its bytes. A kernel that reads `needed` of them would otherwise
// read whatever lies behind a buffer that is too small. Throws KernelError.
using Lent = std::pair<Address, int64_t>;

template <class T>
T* at(const char* what, const Lent& lent, int64_t needed) {
  if (lent.second < needed) {
    refuse<KernelError>("the ", what, " of this weight take ", needed, " bytes, found ", lent.second);
  }
  return at<T>(lent.first);
}

void bind_formats(py::module_& m);
void bind_linear(py::module_& m);
void bind_training(py::module_& m);
void bind_projection(py::module_& m);
void bind_decode(py::module_& m);
void bind_packing(py::module_& m);
void bind_sm90(py::module_& m);
void bind_torch_ops(py::module_& m);

}  // namespace ajour::bindings
