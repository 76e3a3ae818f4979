// What projecting a weight to a pattern computes natively.
#include "bindings/bindings.h"
#include "cpu/max_sums.h"

namespace ajour::bindings {

void bind_projection(py::module_& m) {
  m.attr("MAX_SUM_ROWS") = cpu::kMaxSumRows;
  m.attr("MAX_SUM_COLUMNS") = cpu::kMaxSumColumns;
  m.def(
      "max_sums",
      [](Address first, int64_t first_tiles, Address second, int64_t second_tiles, int64_t n, Address sums) {
        cpu::max_sums({at<float>(first), at<float>(second), first_tiles, second_tiles, n, at<float>(sums)});
      },
      Unlocked());
}

}  // namespace ajour::bindings
