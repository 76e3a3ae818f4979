// The decode kernels: what slabs are, and the shape of a launch (without CUDA too); the products.
#include "bindings/bindings.h"
#include "layout/bitmap_slabs.h"
#include "layout/decode_shape.h"
#include "layout/dense_slabs.h"
#include "layout/gap_rows.h"
#include "layout/nm_slabs.h"
#include "layout/sm80_shape.h"
#ifdef AJOUR_HAS_CUDA
#include "cuda/decode.h"
#include "cuda/nm_sm80.h"
#endif

namespace ajour::bindings {
namespace {

// What the decode kernels read, and how they are laid over a device; without CUDA too.
void bind_slabs(py::module_& m) {
  m.attr("DECODE_ROWS") = kDecodeMaxRows;
  m.attr("_DENSE_SLAB_BYTES") = DenseSlabs::kSlabBytes;
  py::class_<NMSlabs>(m, "NMSlabs")
      .def(py::init(&nm_slabs))
      .def_readonly("columns", &NMSlabs::columns)
      .def_readonly("slab_bytes", &NMSlabs::slab_bytes)
      .def_property_readonly("bytes", &NMSlabs::bytes);
  py::class_<BitmapSlabs>(m, "BitmapSlabs")
      .def(py::init([](int64_t n, int64_t k) { return BitmapSlabs{n, k}; }))
      .def_property_readonly("count", &BitmapSlabs::count);
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

void bind_gap_rows(py::module_& m) {
  m.attr("GAP_ROWS") = kGapMaxRows;
  m.attr("GAP_UNIT") = kGapUnit;
  py::class_<GapRows>(m, "GapRows")
      .def(py::init(&gap_rows))
      .def_readonly("spans", &GapRows::spans)
      .def_readonly("width", &GapRows::width)
      .def_property_readonly("groups", &GapRows::groups);
  py::class_<GapShape>(m, "GapShape")
      .def(py::init(&gap_shape))
      .def_readonly("tokens", &GapShape::tokens)
      .def_readonly("blocks", &GapShape::blocks)
      .def_readonly("shared_bytes", &GapShape::shared_bytes)
      .def_readonly("scratch_bytes", &GapShape::scratch_bytes);
}

// How the 2:4 kernel for many rows is laid over a device; without CUDA too.
void bind_sm80_shape(py::module_& m) {
  py::class_<Sm80Shape>(m, "Sm80Shape")
      .def(py::init([](int64_t m, int64_t n, int64_t k, int panels, int warps_m, int tokens, int stages, int blocks,
                       const DeviceLimits& device) {
        return sm80_shape(m, n, k, {panels, warps_m, tokens}, stages, blocks, device.processors, device.block_shared);
      }))
      .def_readonly("stages", &Sm80Shape::stages)
      .def_readonly("shared_bytes", &Sm80Shape::shared_bytes)
      .def_readonly("scratch_bytes", &Sm80Shape::scratch_bytes)
      .def_property_readonly("tiles", [](const Sm80Shape& shape) { return shape.stripes.tiles; })
      .def_property_readonly("stripes", [](const Sm80Shape& shape) { return shape.stripes.stripes; })
      .def("place",
           [](const Sm80Shape& shape, int tile) { return py::make_tuple(shape.column_of(tile), shape.row_of(tile)); });
}

#ifdef AJOUR_HAS_CUDA
void bind_sm80(py::module_& m) {
  m.def("nm_sm80",
        [](const Sm80Shape& shape, const Lent& slabs, int n, int k, Address x, int64_t x_stride, int rows, Address bias,
           Address residual, Address y, Address scratch, bool bfloat16, int activation, int device, Address stream) {
          const bool whole_chunks = n % 8 == 0 && y % 16 == 0;
          cuda::nm_sm80({at<uint8_t>("slabs", slabs, nm_slabs(n, k, 2, 4).bytes()), at<uint16_t>(x), x_stride,
                         at<uint16_t>(bias), at<uint16_t>(residual), at<uint16_t>(y), whole_chunks,
                         at<uint8_t>(scratch), nullptr, rows, n, k, activation, shape},
                        bfloat16, device, at(stream));
        });
}

// The decode kernels; the last arguments are what ajour.ops.decode_call gives.
void bind_products(py::module_& m) {
  m.def("device_limits", &cuda::device_limits);
  const auto call = [](const DecodeShape& shape, uint8_t* slabs, int32_t* index, int n, int k, Address x,
                       int64_t x_stride, int rows, Address bias, Address residual, Address y, Address scratch,
                       int activation) {
    return cuda::DecodeCall{slabs,
                            index,
                            at<uint16_t>(x),
                            x_stride,
                            x % 16 == 0 && (rows == 1 || x_stride % 8 == 0),
                            at<uint16_t>(bias),
                            at<uint16_t>(residual),
                            at<uint16_t>(y),
                            at<uint8_t>(scratch),
                            nullptr,
                            rows,
                            n,
                            k,
                            activation,
                            shape};
  };
  const auto nm = [call](auto product) {
    return [call, product](const NMSlabs& layout, const Lent& slabs, const DecodeShape& shape, Address x,
                           int64_t x_stride, int rows, Address bias, Address residual, Address y, Address scratch,
                           bool bfloat16, int activation, int device, Address stream) {
      product(layout,
              call(shape, at<uint8_t>("slabs", slabs, layout.bytes()), nullptr, int(layout.n), int(layout.k), x,
                   x_stride, rows, bias, residual, y, scratch, activation),
              bfloat16, device, at(stream));
    };
  };
  m.def("nm_decode", nm(cuda::nm_decode));
  m.def("lanes_decode", nm(cuda::lanes_decode));
  m.def("bitmap_decode",
        [call](const BitmapSlabs& layout, const Lent& slabs, const Lent& index, const DecodeShape& shape, Address x,
               int64_t x_stride, int rows, Address bias, Address residual, Address y, Address scratch, bool bfloat16,
               int activation, int device, Address stream) {
          const int64_t places = layout.count() + 1;  // how many values stand between them is known to the device alone
          cuda::bitmap_decode(call(shape, at<uint8_t>("slabs", slabs, places * BitmapSlabs::kBitBytes),
                                   at<int32_t>("index", index, (places + 1) * 4), int(layout.n), int(layout.k), x,
                                   x_stride, rows, bias, residual, y, scratch, activation),
                              bfloat16, device, at(stream));
        });
  m.def("_dense_decode", [call](int n, int k, const Lent& slabs, const DecodeShape& shape, Address x, int64_t x_stride,
                                int rows, Address bias, Address residual, Address y, Address scratch, bool bfloat16,
                                int activation, int device, Address stream) {
    cuda::dense_decode(call(shape, at<uint8_t>("slabs", slabs, DenseSlabs::bytes(n, k)), nullptr, n, k, x, x_stride,
                            rows, bias, residual, y, scratch, activation),
                       bfloat16, device, at(stream));
  });
  m.def("gap_decode",
        [call](const GapRows& layout, const Lent& data, const Lent& index, const Lent& order, const GapShape& shape,
               Address x, int64_t x_stride, int rows, Address bias, Address residual, Address y, Address scratch,
               bool bfloat16, int activation, int device, Address stream) {
          const int64_t groups = int64_t(layout.spans) * layout.groups();  // their values as above
          const cuda::DecodeCall given =
              call({}, at<uint8_t>("gap rows", data, groups * kGapUnit), at<int32_t>("index", index, (groups + 1) * 4),
                   layout.n, layout.k, x, x_stride, rows, bias, residual, y, scratch, activation);
          cuda::gap_decode(layout, at<int32_t>("order", order, int64_t(layout.groups()) * kGapRows * 4), shape, given,
                           bfloat16, device, at(stream));
        });
}
#endif

}  // namespace

void bind_decode(py::module_& m) {
  bind_slabs(m);
  bind_gap_rows(m);
  bind_sm80_shape(m);
#ifdef AJOUR_HAS_CUDA
  bind_sm80(m);
  bind_products(m);
#endif
}

}  // namespace ajour::bindings
