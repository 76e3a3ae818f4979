// Training: gradients of block-sparse layers, and optimizer steps.
#include "bindings/bindings.h"
#include "cpu/block_product.h"
#include "cpu/block_sddmm.h"
#include "cpu/masked_update.h"
#include "layout/block.h"
#include "memory/check.h"
#ifdef AJOUR_HAS_CUDA
#include "cuda/masked_update.h"
#endif

namespace ajour::bindings {
namespace {

// Training with the canonical blocks: products with W and its transpose, and dW at the live blocks.
void bind_block_training(py::module_& m) {
  m.def(
      "block_product",
      [](const BlockLayout& block, int64_t n, int64_t k, bool transposed, const BlockTensors& w, int dtype, Address x,
         int64_t rows, int64_t x_stride, Address bias, Address residual, int activation, Address y) {
        cpu::block_product({block.rows, block.cols, n, k, transposed, w.blocks,
                            transposed ? w.column_offsets : w.row_offsets, transposed ? w.rows : w.columns,
                            transposed ? w.order : nullptr, dtype, at(x), rows, x_stride, at(bias), at(residual),
                            activation, at(y)});
      },
      Unlocked());
  m.def(
      "block_sddmm",
      [](const BlockLayout& block, int64_t n, int64_t k, const BlockTensors& gradient, bool is_float, bool accumulate,
         int dtype, Address dy, int64_t dy_stride, Address x, int64_t x_stride, int64_t rows) {
        cpu::block_sddmm({block.rows, block.cols, n, k, gradient.live, gradient.rows, gradient.columns, dtype, at(dy),
                          at(x), rows, dy_stride, x_stride, is_float, accumulate, gradient.blocks});
      },
      Unlocked());
}

// Optimizer steps on the CPU; rows: UpdateRow[count] (layout/update_table.h), filled by the host.
void bind_masked_update(py::module_& m) {
  m.attr("UPDATE_CHUNK") = kUpdateChunk;
  m.def(
      "masked_update",
      [](Address rows, int64_t count, Address coefficients, int rule, int type, bool master, bool stochastic,
         float grad_scale) {
        cpu::masked_update({at<UpdateRow>(rows), count, at<float>(coefficients), static_cast<cpu::UpdateRule>(rule),
                            type, master, stochastic, grad_scale});
      },
      Unlocked());
  m.def(
      "masked_norm",
      [](Address rows, int64_t count, int type, int power, Address partial) {
        cpu::masked_norm({at<UpdateRow>(rows), count, type, power, at<double>(partial)});
      },
      Unlocked());
  m.def(
      "masked_clear",
      [](Address rows, int64_t count, int itemsize) { cpu::masked_clear({at<UpdateRow>(rows), count, itemsize}); },
      Unlocked());
#ifdef AJOUR_HAS_CUDA
  m.def(
      "cuda_masked_update",
      [](Address rows, Address chunk_rows, int64_t chunks, Address coefficients, int rule, int type, bool master,
         bool stochastic, Address grad_scale, Address found_inf, Address stream) {
        cuda::masked_update({at<UpdateRow>(rows), at<int32_t>(chunk_rows), chunks, at<float>(coefficients), rule, type,
                             master, stochastic, at<float>(grad_scale), at<float>(found_inf), at(stream)});
      },
      Unlocked());
#endif
}

}  // namespace

void bind_training(py::module_& m) {
  bind_block_training(m);
  bind_masked_update(m);
}

}  // namespace ajour::bindings
