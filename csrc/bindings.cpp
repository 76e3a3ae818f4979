// The one file that knows Python: addresses in, errors out.
#include <pybind11/pybind11.h>

#include "cpu/bitmap_expand.h"
#include "cpu/bitmap_linear.h"
#include "cpu/block_linear.h"
#include "cpu/chunked_linear.h"
#include "cpu/dense_panels.h"
#include "cpu/isa.h"
#include "cpu/nm_expand.h"
#include "cpu/nm_linear.h"
#include "layout/bitmap.h"
#include "layout/bitmap_rows.h"
#include "layout/bitmap_slabs.h"
#include "layout/block.h"
#include "layout/block_panels.h"
#include "layout/chunked_rows.h"
#include "layout/decode_shape.h"
#include "layout/nm.h"
#include "layout/nm_panels.h"
#include "layout/nm_slabs.h"
#include "layout/zeros.h"
#include "memory/check.h"
#include "memory/parallel.h"
#ifdef AJOUR_HAS_CUDA
#include "cuda/decode.h"
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

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

py::dict census(const ajour::WeightView& w) {
  ajour::Census found;
  {
    const py::gil_scoped_release unlocked;
    found = ajour::census(w);
  }
  py::dict keeps, blocks, all;
  for (size_t i = 0; i < found.keeps.size(); ++i) keeps[py::int_(ajour::CENSUS_GROUPS[i])] = found.keeps[i];
  for (const ajour::BlockCount& block : found.blocks) {
    blocks[py::make_tuple(block.rows, block.cols)] = py::make_tuple(block.live, block.stored);
  }
  all["nonzeros"] = found.nonzeros;
  all["zero_rows"] = found.zero_rows;
  all["zero_cols"] = found.zero_cols;
  all["keeps"] = keeps;
  all["blocks"] = blocks;
  return all;
}

// Formats: weights [n, k] and their canonical tensors, by address.
void bind_formats(py::module_& m) {
  using namespace ajour;
  py::class_<WeightView>(m, "WeightView").def(py::init([](Address data, int64_t n, int64_t k, int itemsize) {
    return WeightView{at(data), n, k, itemsize};
  }));
  m.def("census", &census);

  py::class_<NMLayout>(m, "NMLayout")
      .def(py::init([](int keep, int group) { return NMLayout{keep, group}; }))
      .def("kept", &NMLayout::kept)
      .def("position_bytes", &NMLayout::position_bytes);
  m.def(
      "pack_nm",
      [](const NMLayout& layout, const WeightView& w, Address values, Address positions) {
        pack_nm(layout, w, at(values), at<uint8_t>(positions));
      },
      Unlocked());
  m.def(
      "unpack_nm",
      [](const NMLayout& layout, Address values, Address positions, const WeightView& w) {
        unpack_nm(layout, at(values), at<uint8_t>(positions), w);
      },
      Unlocked());
  m.def(
      "check_nm",
      [](const NMLayout& layout, Address values, Address positions, const WeightView& w) {
        check_nm(layout, at(values), at<uint8_t>(positions), w);
      },
      Unlocked());

  py::class_<BlockLayout>(m, "BlockLayout")
      .def(py::init([](int rows, int cols) { return BlockLayout{rows, cols}; }))
      .def("block_rows", &BlockLayout::block_rows)
      .def("block_cols", &BlockLayout::block_cols);
  py::class_<BlockTensors>(m, "BlockTensors")
      .def(py::init([](Address blocks, Address row_offsets, Address columns, Address rows, Address column_offsets,
                       Address order, int64_t live) {
        return BlockTensors{at(blocks),
                            at<int32_t>(row_offsets),
                            at<int32_t>(columns),
                            at<int32_t>(rows),
                            at<int32_t>(column_offsets),
                            at<int32_t>(order),
                            live};
      }));
  m.def(
      "find_blocks",
      [](const BlockLayout& layout, const WeightView& w, Address grid) {
        return find_blocks(layout, w, at<uint8_t>(grid));
      },
      Unlocked());
  m.def(
      "pack_blocks",
      [](const BlockLayout& layout, const WeightView& w, Address grid, const BlockTensors& tensors) {
        pack_blocks(layout, w, at<uint8_t>(grid), tensors);
      },
      Unlocked());
  m.def("unpack_blocks", &unpack_blocks, Unlocked());
  m.def("check_blocks", &check_blocks, Unlocked());

  py::class_<BitmapTensors>(m, "BitmapTensors")
      .def(py::init([](Address values, Address bitmaps, Address offsets, int64_t nonzeros) {
        return BitmapTensors{at(values), at<uint64_t>(bitmaps), at<int32_t>(offsets), nonzeros};
      }));
  m.def(
      "find_nonzeros",
      [](const WeightView& w, Address bitmaps, Address offsets) {
        return find_nonzeros(w, at<uint64_t>(bitmaps), at<int32_t>(offsets));
      },
      Unlocked());
  m.def("pack_bitmap", &pack_bitmap, Unlocked());
  m.def("unpack_bitmap", &unpack_bitmap, Unlocked());
  m.def("check_bitmap", &check_bitmap, Unlocked());
}

// nm_linear on the CPU: N:M panels and the products that read them.
void bind_nm_linear(py::module_& m) {
  using namespace ajour;
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
  m.def(
      "nm_linear",
      [](const NMPanels& layout, Address panels, Address codes, Address x, int64_t rows, int64_t x_stride, Address bias,
         Address residual, Address y, int type, int activation) {
        cpu::nm_linear({layout, at(panels), at<uint8_t>(codes), at(x), rows, x_stride, at(bias), at(residual), at(y),
                        static_cast<cpu::FloatType>(type), activation});
      },
      Unlocked());
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
  using namespace ajour;
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
  m.def(
      "block_linear",
      [](Address values, Address index, int dtype, Address x, int64_t m, int64_t x_stride, Address bias,
         Address residual, int activation, Address y) {
        const BlockPanels panels = read_block_panels(at<int32_t>(index), dtype == 0 ? 4 : 2);
        cpu::block_linear({panels, at(values), dtype, at(x), m, x_stride, at(bias), at(residual), activation, at(y)});
      },
      Unlocked());
}

// bitmap_linear on the CPU: bitmap rows, decoded for few rows of x or expanded for many.
void bind_bitmap_rows(py::module_& m) {
  using namespace ajour;
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
  m.def(
      "bitmap_linear",
      [](Address x, int64_t x_stride, int64_t m, int64_t n, int64_t k, int dtype, Address values, Address bits,
         Address starts, Address bias, Address residual, int activation, Address y) {
        bool out_of_memory = false;
        cpu::bitmap_linear({at(x), x_stride, m, n, k, dtype, at(values), at<uint64_t>(bits), at<int64_t>(starts),
                            at(bias), at(residual), n, activation, at(y), &out_of_memory});
        if (out_of_memory) refuse<KernelError>("bitmap_linear: out of memory for a copy of ", m, " rows of x");
      },
      Unlocked());
}

// bitmap_linear on the CPU: chunked rows.
void bind_chunked_rows(py::module_& m) {
  using namespace ajour;
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
  m.def(
      "chunked_linear",
      [](Address x, int64_t x_stride, int64_t m, int64_t n, int64_t k, int dtype, Address values, Address columns,
         Address index, Address bias, Address residual, int activation, Address y) {
        const ChunkedRows w = read_chunked_rows(at(values), at<uint16_t>(columns), at<int64_t>(index), n, k, 0);
        bool out_of_memory = false;
        cpu::chunked_linear({at(x),
                             x_stride,
                             m,
                             n,
                             k,
                             dtype,
                             w.values,
                             w.columns,
                             w.visits,
                             w.cells,
                             w.panels,
                             w.panel_count,
                             w.chunk_count,
                             w.chunk_columns(),
                             at(bias),
                             at(residual),
                             n,
                             activation,
                             at(y),
                             &out_of_memory});
        if (out_of_memory) refuse<KernelError>("bitmap_linear: out of memory for the sums of ", n, " out features");
      },
      Unlocked());
}

// What the decode kernels read, and how they are laid over a device; without CUDA too.
void bind_slabs(py::module_& m) {
  using namespace ajour;
  m.attr("DECODE_ROWS") = kDecodeMaxRows;
  py::class_<NMSlabs>(m, "NMSlabs")
      .def(py::init(&nm_slabs))
      .def_readonly("columns", &NMSlabs::columns)
      .def_readonly("slab_bytes", &NMSlabs::slab_bytes)
      .def_property_readonly("bytes", &NMSlabs::bytes);
  m.def(
      "pack_nm_slabs",
      [](const NMSlabs& layout, Address values, Address positions, Address slabs) {
        pack_nm_slabs(layout, at(values), at<uint8_t>(positions), at<uint8_t>(slabs));
      },
      Unlocked());
  m.def(
      "unpack_nm_slabs",
      [](const NMSlabs& layout, Address slabs, Address values, Address positions) {
        unpack_nm_slabs(layout, at<uint8_t>(slabs), at(values), at<uint8_t>(positions));
      },
      Unlocked());
  py::class_<BitmapSlabs>(m, "BitmapSlabs")
      .def(py::init([](int64_t n, int64_t k) { return BitmapSlabs{n, k}; }))
      .def_property_readonly("count", &BitmapSlabs::count);
  m.def(
      "index_bitmap_slabs",
      [](const BitmapSlabs& layout, const BitmapTensors& matrix, Address index) {
        return index_bitmap_slabs(layout, matrix, at<int32_t>(index));
      },
      Unlocked());
  m.def(
      "pack_bitmap_slabs",
      [](const BitmapSlabs& layout, const BitmapTensors& matrix, Address index, Address slabs) {
        pack_bitmap_slabs(layout, matrix, at<int32_t>(index), at<uint8_t>(slabs));
      },
      Unlocked());
  m.def(
      "unpack_bitmap_slabs",
      [](const BitmapSlabs& layout, Address slabs, Address index, const BitmapTensors& matrix) {
        unpack_bitmap_slabs(layout, at<uint8_t>(slabs), at<int32_t>(index), matrix);
      },
      Unlocked());
  m.def(
      "count_bitmap_slabs",
      [](const BitmapSlabs& layout, Address slabs, Address index) {
        return count_bitmap_slabs(layout, at<uint8_t>(slabs), at<int32_t>(index));
      },
      Unlocked());
  py::class_<Stripes>(m, "Stripes")
      .def(py::init(&Stripes::cut))
      .def_readonly("count", &Stripes::stripes)
      .def_property_readonly("shared", &Stripes::shared)
      .def("begin", &Stripes::begin)
      .def("first_holder", &Stripes::first_holder)
      .def("last_holder", &Stripes::last_holder)
      .def("place", &Stripes::place);
  py::class_<DeviceLimits>(m, "DeviceLimits").def(py::init([](int processors, int block_shared, int processor_shared) {
    return DeviceLimits{processors, block_shared, processor_shared};
  }));
  py::class_<DecodeShape>(m, "DecodeShape")
      .def(py::init([](int64_t m, int64_t n, int64_t k, int columns, int room, const DeviceLimits& device, int blocks,
                       int stages) {
        const SlabGrid grid{ceil_div(n, kSlabRows), ceil_div(k, columns), columns, room};
        return decode_shape(m, grid, device, blocks, stages);
      }))
      .def_readonly("tokens", &DecodeShape::tokens)
      .def_readonly("stages", &DecodeShape::stages)
      .def_readonly("shared_bytes", &DecodeShape::shared_bytes)
      .def_readonly("scratch_bytes", &DecodeShape::scratch_bytes)
      .def_property_readonly("stripes", [](const DecodeShape& shape) { return shape.stripes.stripes; });
}

#ifdef AJOUR_HAS_CUDA
// The decode kernels; the last arguments are what ajour.ops.decode_call gives.
void bind_decode(py::module_& m) {
  using namespace ajour;
  m.def("device_limits", &cuda::device_limits);
  const auto call = [](const DecodeShape& shape, Address slabs, Address index, int n, int k, Address x,
                       int64_t x_stride, int rows, Address bias, Address residual, Address y, Address scratch,
                       int activation) {
    return cuda::DecodeCall{at<uint8_t>(slabs),
                            at<int32_t>(index),
                            at<uint16_t>(x),
                            x_stride,
                            x % 16 == 0 && (rows == 1 || x_stride % 8 == 0),
                            at<uint16_t>(bias),
                            at<uint16_t>(residual),
                            at<uint16_t>(y),
                            at<uint8_t>(scratch),
                            rows,
                            n,
                            k,
                            activation,
                            shape};
  };
  m.def("nm_decode", [call](const NMSlabs& layout, Address slabs, const DecodeShape& shape, Address x, int64_t x_stride,
                            int rows, Address bias, Address residual, Address y, Address scratch, bool bfloat16,
                            int activation, int device, Address stream) {
    cuda::nm_decode(
        layout,
        call(shape, slabs, 0, int(layout.n), int(layout.k), x, x_stride, rows, bias, residual, y, scratch, activation),
        bfloat16, device, at(stream));
  });
  m.def("bitmap_decode", [call](const BitmapSlabs& layout, Address slabs, Address index, const DecodeShape& shape,
                                Address x, int64_t x_stride, int rows, Address bias, Address residual, Address y,
                                Address scratch, bool bfloat16, int activation, int device, Address stream) {
    cuda::bitmap_decode(call(shape, slabs, index, int(layout.n), int(layout.k), x, x_stride, rows, bias, residual, y,
                             scratch, activation),
                        bfloat16, device, at(stream));
  });
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
#ifdef AJOUR_HAS_CUDA
  m.attr("has_cuda") = true;
  m.def("device_count", &ajour::cuda::device_count);
  bind_decode(m);
#else
  m.attr("has_cuda") = false;
  m.def("device_count", [] { return 0; });
#endif
  m.def("bind_thread_pool", &ajour::bind_thread_pool);
  bind_errors();
  bind_formats(m);
  bind_nm_linear(m);
  bind_block_linear(m);
  bind_bitmap_rows(m);
  bind_chunked_rows(m);
  bind_slabs(m);

  m.def("cpu_isa", [] { return ajour::cpu::isa_name(ajour::cpu::isa()); });
  m.def("best_cpu_isa", [] { return ajour::cpu::isa_name(ajour::cpu::best_isa()); });
  m.def("set_cpu_isa", &ajour::cpu::set_isa);
}
