// What the GPU's kernels read, packed and unpacked: on the host, and under the same names with "_cuda" where the weight
// lies, on a stream of a device.
#include "bindings/bindings.h"
#include "layout/bitmap_slabs.h"
#include "layout/gap_rows.h"
#include "layout/nm.h"
#include "layout/nm_slabs.h"
#ifdef AJOUR_HAS_CUDA
#include "cuda/bitmap_packing.h"
#include "cuda/canonical.h"
#include "cuda/nm_slabs.h"
#endif

namespace ajour::bindings {
namespace {

void bind_nm_slabs(py::module_& m) {
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
}

void bind_bitmap_slabs(py::module_& m) {
  m.def(
      "index_bitmap_slabs",
      [](const BitmapSlabs& layout, Address offsets, Address index) {
        return index_bitmap_slabs(layout, at<int32_t>(offsets), at<int32_t>(index));
      },
      Unlocked());
  m.def(
      "pack_bitmap_slabs",
      [](const BitmapSlabs& layout, const BitmapTensors& matrix, Address index, Address slabs) {
        pack_bitmap_slabs(layout, matrix, at<int32_t>(index), at<uint8_t>(slabs));
      },
      Unlocked());
  m.def(
      "find_bitmap_slabs",
      [](const BitmapSlabs& layout, Address slabs, Address index, const BitmapTensors& matrix) {
        return find_bitmap_slabs(layout, at<uint8_t>(slabs), at<int32_t>(index), matrix);
      },
      Unlocked());
  m.def(
      "unpack_bitmap_slabs",
      [](const BitmapSlabs& layout, Address slabs, Address index, const BitmapTensors& matrix) {
        unpack_bitmap_slabs(layout, at<uint8_t>(slabs), at<int32_t>(index), matrix);
      },
      Unlocked());
}

void bind_gap_rows(py::module_& m) {
  m.def(
      "count_gap_rows",
      [](const GapRows& layout, const BitmapTensors& matrix, Address counts) {
        count_gap_rows(layout, matrix, at<int32_t>(counts));
      },
      Unlocked());
  m.def("order_gap_rows", [](const GapRows& layout, Address counts, Address order) {
    order_gap_rows(layout, at<int32_t>(counts), at<int32_t>(order));
  });
  m.def(
      "measure_gap_rows",
      [](const GapRows& layout, const BitmapTensors& matrix, Address order, Address steps) {
        measure_gap_rows(layout, matrix, at<int32_t>(order), at<int32_t>(steps));
      },
      Unlocked());
  m.def("index_gap_rows", [](const GapRows& layout, Address steps, Address index) {
    index_gap_rows(layout, at<int32_t>(steps), at<int32_t>(index));
  });
  m.def(
      "pack_gap_rows",
      [](const GapRows& layout, const BitmapTensors& matrix, Address order, Address index, Address data) {
        pack_gap_rows(layout, matrix, at<int32_t>(order), at<int32_t>(index), at<uint8_t>(data));
      },
      Unlocked());
  m.def(
      "find_gap_rows",
      [](const GapRows& layout, Address data, Address order, Address index, const BitmapTensors& matrix) {
        return find_gap_rows(layout, at<uint8_t>(data), at<int32_t>(order), at<int32_t>(index), matrix);
      },
      Unlocked());
  m.def(
      "unpack_gap_rows",
      [](const GapRows& layout, Address data, Address order, Address index, const BitmapTensors& matrix) {
        unpack_gap_rows(layout, at<uint8_t>(data), at<int32_t>(order), at<int32_t>(index), matrix);
      },
      Unlocked());
}

#ifdef AJOUR_HAS_CUDA
void bind_canonical_there(py::module_& m) {
  m.def("pack_nm_cuda", [](const NMLayout& layout, const WeightView& w, Address values, Address positions,
                           Address refused, int device, Address stream) {
    cuda::pack_nm(layout, w, at(values), at<uint8_t>(positions), at<int32_t>(refused), device, at(stream));
  });
  m.def("unpack_nm_cuda",
        [](const NMLayout& layout, Address values, Address positions, const WeightView& w, int device, Address stream) {
          cuda::unpack_nm(layout, at(values), at<uint8_t>(positions), w, device, at(stream));
        });
  m.def(
      "find_nonzeros_cuda",
      [](const WeightView& w, Address bitmaps, Address offsets, int device, Address stream) {
        return cuda::find_nonzeros(w, {nullptr, at<uint64_t>(bitmaps), at<int32_t>(offsets), 0}, device, at(stream));
      },
      Unlocked());
  m.def("pack_bitmap_cuda", [](const WeightView& w, const BitmapTensors& tensors, int device, Address stream) {
    cuda::pack_bitmap(w, tensors, device, at(stream));
  });
  m.def("unpack_bitmap_cuda", [](const BitmapTensors& tensors, const WeightView& w, int device, Address stream) {
    cuda::unpack_bitmap(tensors, w, device, at(stream));
  });
}

void bind_slabs_there(py::module_& m) {
  m.def("pack_nm_slabs_cuda",
        [](const NMSlabs& layout, Address values, Address positions, Address slabs, int device, Address stream) {
          cuda::pack_nm_slabs(layout, at(values), at<uint8_t>(positions), at<uint8_t>(slabs), device, at(stream));
        });
  m.def("unpack_nm_slabs_cuda",
        [](const NMSlabs& layout, Address slabs, Address values, Address positions, int device, Address stream) {
          cuda::unpack_nm_slabs(layout, at<uint8_t>(slabs), at(values), at<uint8_t>(positions), device, at(stream));
        });
  m.def("pack_bitmap_slabs_cuda", [](const BitmapSlabs& layout, const BitmapTensors& matrix, Address index,
                                     Address slabs, int device, Address stream) {
    cuda::pack_bitmap_slabs(layout, matrix, at<int32_t>(index), at<uint8_t>(slabs), device, at(stream));
  });
  m.def(
      "find_bitmap_slabs_cuda",
      [](const BitmapSlabs& layout, Address slabs, Address index, const BitmapTensors& matrix, int device,
         Address stream) {
        return cuda::find_bitmap_slabs(layout, at<uint8_t>(slabs), at<int32_t>(index), matrix, device, at(stream));
      },
      Unlocked());
  m.def("unpack_bitmap_slabs_cuda", [](const BitmapSlabs& layout, Address slabs, Address index,
                                       const BitmapTensors& matrix, int device, Address stream) {
    cuda::unpack_bitmap_slabs(layout, at<uint8_t>(slabs), at<int32_t>(index), matrix, device, at(stream));
  });
}

void bind_gap_rows_there(py::module_& m) {
  m.def("count_gap_rows_cuda",
        [](const GapRows& layout, const BitmapTensors& matrix, Address counts, int device, Address stream) {
          cuda::count_gap_rows(layout, matrix, at<int32_t>(counts), device, at(stream));
        });
  m.def("measure_gap_rows_cuda", [](const GapRows& layout, const BitmapTensors& matrix, Address order, Address steps,
                                    int device, Address stream) {
    cuda::measure_gap_rows(layout, matrix, at<int32_t>(order), at<int32_t>(steps), device, at(stream));
  });
  m.def("pack_gap_rows_cuda", [](const GapRows& layout, const BitmapTensors& matrix, Address order, Address index,
                                 Address data, int device, Address stream) {
    cuda::pack_gap_rows(layout, matrix, at<int32_t>(order), at<int32_t>(index), at<uint8_t>(data), device, at(stream));
  });
  m.def(
      "find_gap_rows_cuda",
      [](const GapRows& layout, Address data, Address order, Address index, const BitmapTensors& matrix, int device,
         Address stream) {
        return cuda::find_gap_rows(layout, at<uint8_t>(data), at<int32_t>(order), at<int32_t>(index), matrix, device,
                                   at(stream));
      },
      Unlocked());
  m.def("unpack_gap_rows_cuda", [](const GapRows& layout, Address data, Address order, Address index,
                                   const BitmapTensors& matrix, int device, Address stream) {
    cuda::unpack_gap_rows(layout, at<uint8_t>(data), at<int32_t>(order), at<int32_t>(index), matrix, device,
                          at(stream));
  });
}
#endif

}  // namespace

void bind_packing(py::module_& m) {
  bind_nm_slabs(m);
  bind_bitmap_slabs(m);
  bind_gap_rows(m);
#ifdef AJOUR_HAS_CUDA
  bind_canonical_there(m);
  bind_slabs_there(m);
  bind_gap_rows_there(m);
#endif
}

}  // namespace ajour::bindings
