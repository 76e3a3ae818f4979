// Formats: a weight's zeros, and its canonical tensors.
#include "bindings/bindings.h"
#include "layout/bitmap.h"
#include "layout/block.h"
#include "layout/nm.h"
#include "layout/zeros.h"
#include "memory/check.h"

namespace ajour::bindings {
namespace {

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
  all["beyond_two"] = found.beyond_two;
  all["keeps"] = keeps;
  all["blocks"] = blocks;
  return all;
}

}  // namespace

// Formats: weights [n, k] and their canonical tensors, by address.
void bind_formats(py::module_& m) {
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

}  // namespace ajour::bindings
