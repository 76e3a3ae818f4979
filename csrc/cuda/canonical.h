// Canonical forms made where a dense weight lies, and what packing them needs. As the functions of the same names in
// layout/, with tensors on `device`; all run on `stream`. Throw KernelError if CUDA refuses.
#pragma once
#include "layout/bitmap_tiles.h"
#include "layout/nm.h"

namespace ajour::cuda {

// `refused` becomes 1, and values and positions are of no use, if a group has too many non-zeros: the host says where.
void pack_nm(const NMLayout& layout, const WeightView& w, void* values, uint8_t* positions, int32_t* refused,
             int device, void* stream);

void unpack_nm(const NMLayout& layout, const void* values, const uint8_t* positions, const WeightView& w, int device,
               void* stream);

// Waits for the number of values, which the caller needs room for.
int64_t find_nonzeros(const WeightView& w, const BitmapTensors& tensors, int device, void* stream);
void pack_bitmap(const WeightView& w, const BitmapTensors& tensors, int device, void* stream);
// Bitmaps and offsets were checked (check_bitmap).
void unpack_bitmap(const BitmapTensors& tensors, const WeightView& w, int device, void* stream);

// From tiles, which the current device has, to offsets; returns the values. Waits.
int64_t count_values(const BitmapTiles& tiles, void* stream);

}  // namespace ajour::cuda
