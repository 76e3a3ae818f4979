// _C: what it was built with, its errors and everything that it offers.
#include "bindings/bindings.h"
#include "cpu/isa.h"
#include "memory/check.h"
#ifdef AJOUR_HAS_CUDA
#include "cuda/device.h"
#endif

namespace {

// The C++ errors become those of ajour.terms.errors.
void bind_errors() {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    const auto raise = [](const char* name, const std::exception& error) {
      PyErr_SetString(py::module_::import("ajour.terms.errors").attr(name).ptr(), error.what());
    };
    try {
      std::rethrow_exception(thrown);
    } catch (const ajour::PatternError& error) {
      raise("PatternError", error);
    } catch (const ajour::FormatError& error) {
      raise("FormatError", error);
    } catch (const ajour::KernelError& error) {
      raise("KernelError", error);
    }
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using namespace ajour::bindings;
#ifdef AJOUR_HAS_CUDA
  m.attr("has_cuda") = true;
  m.def("device_count", &ajour::cuda::device_count);
#else
  m.attr("has_cuda") = false;
  m.def("device_count", [] { return 0; });
#endif
  bind_errors();
  bind_formats(m);
  bind_linear(m);
  bind_training(m);
  bind_projection(m);
  bind_decode(m);
  bind_packing(m);
  bind_sm90(m);
  bind_torch_ops(m);

  m.def("cpu_isa", [] { return ajour::cpu::isa_name(ajour::cpu::isa()); });
  m.def("best_cpu_isa", [] { return ajour::cpu::isa_name(ajour::cpu::best_isa()); });
  m.def("set_cpu_isa", &ajour::cpu::set_isa);
}
