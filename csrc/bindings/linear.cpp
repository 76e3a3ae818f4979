// The linear ops on the CPU: packed forms and products.
#include <pybind11/stl.h>

#include <memory>

#include "bindings/bindings.h"
#include "cpu/bitmap_expand.h"
#include "cpu/bitmap_linear.h"
#include "cpu/block_linear.h"
#include "cpu/chunked_linear.h"
#include "cpu/dense_panels.h"
#include "cpu/isa.h"
#include "cpu/linear_call.h"
#include "cpu/nm_expand.h"
#include "cpu/nm_linear.h"
#include "layout/bitmap.h"
#include "layout/bitmap_rows.h"
#include "layout/block.h"
#include "layout/block_panels.h"
#include "layout/chunked_rows.h"
#include "layout/nm.h"
#include "layout/nm_panels.h"
#include "memory/check.h"

namespace ajour::bindings {
namespace {

using cpu::LinearCall;
using cpu::RunLinear;

// nm_linear on the CPU: N:M panels and the products that read them.
void bind_nm_linear(py::module_& m) {
  py::class_<NMPanels>(m, "NMPanels")
      .def(py::init(&nm_panels))
      .def_readonly("values", &NMPanels::values)
      .def_readonly("code_bytes", &NMPanels::code_bytes);
  m.def(
      "pack_nm_panels",
      [](const NMPanels& layout, Address values, Address positions, Address panels, Address codes) {
        pack_nm_panels(layout, at(values), at<uint8_t>(positions), at(panels), at<uint8_t>(codes));
      },
      Unlocked());
  m.def(
      "unpack_nm_panels",
      [](const NMPanels& layout, Address panels, Address codes, Address values, Address positions) {
        unpack_nm_panels(layout, at(panels), at<uint8_t>(codes), at(values), at<uint8_t>(positions));
      },
      Unlocked());
  m.def(
      "nm_expand",
      [](const NMPanels& layout, Address panels, Address codes, Address weight) {
        cpu::nm_expand({layout, at(panels), at<uint8_t>(codes), at(weight)});
      },
      Unlocked());
  m.def("nm_linear", [](const NMPanels& layout, int type) -> RunLinear {
    return [layout, type](const LinearCall& c) {
      cpu::nm_linear({layout, c.packed[0], static_cast<const uint8_t*>(c.packed[1]), c.x, c.m, c.x_stride, c.bias,
                      c.residual, c.y, static_cast<cpu::FloatType>(type), c.activation});
    };
  });
  // y = x @ w.T for a packed dense weight: a control, for benchmarks only.
  m.def(
      "_dense_panels",
      [](Address weight, Address x, Address y, int64_t rows, int64_t n, int64_t k, bool bfloat16) {
        cpu::dense_panels({at(weight), at(x), at(y), rows, n, k, bfloat16});
      },
      Unlocked());
}

// The CPU kernel of block_linear and its packed order.
void bind_block_linear(py::module_& m) {
  m.def("block_panels_sizes", [](const BlockLayout& block, int64_t n, int64_t k, int64_t live, int itemsize) {
    const BlockPanels panels = block_panels(block, n, k, live, itemsize);
    return py::make_tuple(block_panels_values(block, n, live, itemsize), block_panels_index_size(panels));
  });
  m.def(
      "pack_block_panels",
      [](const BlockLayout& block, const WeightView& w, const BlockTensors& tensors, Address values, Address index) {
        pack_block_panels(block_panels(block, w.n, w.k, tensors.live, w.itemsize), tensors, w.itemsize, at(values),
                          at<int32_t>(index));
      },
      Unlocked());
  m.def(
      "unpack_block_panels",
      [](Address values, Address index, int itemsize, const BlockTensors& tensors) {
        unpack_block_panels(read_block_panels(at<int32_t>(index), itemsize), at(values), itemsize, tensors);
      },
      Unlocked());
  m.def("block_linear", [](int dtype) -> RunLinear {
    return [dtype](const LinearCall& c) {
      const BlockPanels panels = read_block_panels(static_cast<const int32_t*>(c.packed[1]), dtype == 0 ? 4 : 2);
      cpu::block_linear({panels, c.packed[0], dtype, c.x, c.m, c.x_stride, c.bias, c.residual, c.activation, c.y});
    };
  });
}

// bitmap_linear on the CPU: bitmap rows, decoded for few rows of x or expanded for many.
void bind_bitmap_rows(py::module_& m) {
  m.attr("VALUE_TAIL") = kValueTail;
  py::class_<BitmapRows>(m, "BitmapRows")
      .def(py::init([](Address values, Address bits, Address starts, int64_t n, int64_t k, int itemsize) {
        return BitmapRows{at(values), at<uint64_t>(bits), at<int64_t>(starts), n, k, itemsize};
      }));
  m.def("pack_bitmap_rows", &pack_bitmap_rows, Unlocked());
  m.def("unpack_bitmap_rows", &unpack_bitmap_rows, Unlocked());
  m.def(
      "bitmap_expand",
      [](const BitmapRows& rows, int64_t first, int64_t last, Address dense) {
        cpu::bitmap_expand({first, last, rows.k, rows.itemsize, rows.values, rows.bits, rows.starts, at(dense)});
      },
      Unlocked());
  m.def("bitmap_linear", [](int64_t n, int64_t k, int dtype) -> RunLinear {
    return [n, k, dtype](const LinearCall& c) {
      bool out_of_memory = false;
      cpu::bitmap_linear({c.x, c.x_stride, c.m, n, k, dtype, c.packed[0], static_cast<const uint64_t*>(c.packed[1]),
                          static_cast<const int64_t*>(c.packed[2]), c.bias, c.residual, n, c.activation, c.y,
                          &out_of_memory});
      if (out_of_memory) refuse<KernelError>("bitmap_linear: out of memory for a copy of ", c.m, " rows of x");
    };
  });
}

// x @ w.T for a weight in chunked rows, its tensors from packed[first] on: no bias, residual, activation or y yet.
cpu::ChunkedLinear chunked_product(const LinearCall& c, int first, int64_t n, int64_t k, int dtype) {
  const ChunkedRows w = read_chunked_rows(c.packed[first], static_cast<uint16_t*>(c.packed[first + 1]),
                                          static_cast<int64_t*>(c.packed[first + 2]), n, k, 0);
  cpu::ChunkedLinear product{};
  product.x = c.x;
  product.x_stride = c.x_stride;
  product.m = c.m;
  product.n = n;
  product.k = k;
  product.dtype = dtype;
  product.values = w.values;
  product.columns = w.columns;
  product.visits = w.visits;
  product.cells = w.cells;
  product.panels = w.panels;
  product.panel_count = w.panel_count;
  product.chunk_count = w.chunk_count;
  product.chunk_columns = w.chunk_columns();
  product.residual_stride = n;
  return product;
}

void run_chunked(const char* op, cpu::ChunkedLinear product) {
  bool out_of_memory = false;
  product.out_of_memory = &out_of_memory;
  cpu::chunked_linear(product);
  if (out_of_memory) refuse<KernelError>(op, ": out of memory for the sums of ", product.n, " out features");
}

// bitmap_linear on the CPU: chunked rows.
void bind_chunked_rows(py::module_& m) {
  m.attr("PANEL_ALIGN") = kPanelAlign;
  m.def("chunks_of", &chunks_of);
  m.def("chunk_index_size", &chunk_index_size, Unlocked());
  m.def(
      "pack_chunked_rows",
      [](const BitmapRows& rows, int64_t chunk_count, Address values, Address columns, Address index) {
        pack_chunked_rows(rows, chunk_count, at(values), at<uint16_t>(columns), at<int64_t>(index));
      },
      Unlocked());
  m.def(
      "unpack_chunked_rows",
      [](Address values, Address columns, Address index, const BitmapRows& rows) {
        unpack_chunked_rows(
            read_chunked_rows(at(values), at<uint16_t>(columns), at<int64_t>(index), rows.n, rows.k, rows.itemsize),
            rows);
      },
      Unlocked());
  m.def("chunked_linear", [](int64_t n, int64_t k, int dtype) -> RunLinear {
    return [n, k, dtype](const LinearCall& c) {
      cpu::ChunkedLinear product = chunked_product(c, 0, n, k, dtype);
      product.bias = c.bias;
      product.residual = c.residual;
      product.activation = c.activation;
      product.y = c.y;
      run_chunked("bitmap_linear", product);
    };
  });
}

// split_linear on the CPU: the sums of the scattered rest, unrounded, then the 2:4 part, which adds them to its own.
void bind_split_linear(py::module_& m) {
  m.def("split_linear", [](const NMPanels& layout, int type) -> RunLinear {
    return [layout, type](const LinearCall& c) {
      cpu::ChunkedLinear rest = chunked_product(c, 2, layout.n, layout.k, type);
      const bool rounded = type != cpu::kFloat32;  // y itself holds the sums of float32: read before y is written there
      const std::unique_ptr<float[]> wide(rounded ? new float[size_t(c.m * layout.n)] : nullptr);
      rest.sums = rounded ? wide.get() : static_cast<float*>(c.y);
      run_chunked("split_linear", rest);
      cpu::nm_linear({layout, c.packed[0], static_cast<const uint8_t*>(c.packed[1]), c.x, c.m, c.x_stride, c.bias,
                      c.residual, c.y, static_cast<cpu::FloatType>(type), c.activation, rest.sums});
    };
  });
}

// A kernel as Python calls it, on addresses.
void bind_call(py::module_& m) {
  py::class_<RunLinear>(m, "LinearKernel")
      .def(
          "__call__",
          [](const RunLinear& run, const std::vector<Address>& packed, Address x, int64_t rows, int64_t x_stride,
             Address bias, Address residual, int activation, Address y) {
            std::vector<void*> tensors;
            for (const Address tensor : packed) tensors.push_back(at(tensor));
            run({tensors.data(), at(x), rows, x_stride, at(bias), at(residual), activation, at(y)});
          },
          Unlocked());
}

}  // namespace

void bind_linear(py::module_& m) {
  bind_call(m);
  bind_nm_linear(m);
  bind_block_linear(m);
  bind_bitmap_rows(m);
  bind_chunked_rows(m);
  bind_split_linear(m);
}

}  // namespace ajour::bindings
