// Torch's ops that the compiled part implements.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "torch_abi/functions.h"
#include "torch_abi/linear_op.h"

namespace ajour::bindings {

void bind_torch_ops(py::module_& m) {
  m.def("bind_torch", &torch_abi::bind_functions);
  m.def("implement_linear", &torch_abi::implement_linear);
  m.def("bypass_compiled_linear", &torch_abi::bypass);
  m.def("poison_outputs", &torch_abi::poison);
  using Entry = std::tuple<int64_t, int64_t, int64_t, const cpu::RunLinear*>;
  m.def("add_linear_table", [](const std::string& op, const std::string& text, int64_t n, int64_t k, int type,
                               int64_t needs, const std::vector<Entry>& entries) {
    torch_abi::LinearTable table{n, k, type, needs, {}};
    for (const auto& [limit, start, stop, run] : entries) {
      table.entries.push_back({limit, start, stop - start, run ? *run : nullptr});
    }
    torch_abi::add_table(op, text, std::move(table));
  });
}

}  // namespace ajour::bindings
