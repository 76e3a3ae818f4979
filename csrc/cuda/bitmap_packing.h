// Bitmap slabs and gap rows packed and unpacked where the weight lies. As the functions of the same names in layout/,
// with tensors on `device`; all run on `stream`. Throw KernelError if CUDA refuses.
#pragma once
#include "layout/bitmap_slabs.h"
#include "layout/gap_rows.h"

namespace ajour::cuda {

void pack_bitmap_slabs(const BitmapSlabs& layout, const BitmapTensors& matrix, const int32_t* index, uint8_t* slabs,
                       int device, void* stream);
// Waits for the number of values, which the caller needs room for.
int64_t find_bitmap_slabs(const BitmapSlabs& layout, const uint8_t* slabs, const int32_t* index,
                          const BitmapTensors& matrix, int device, void* stream);
void unpack_bitmap_slabs(const BitmapSlabs& layout, const uint8_t* slabs, const int32_t* index,
                         const BitmapTensors& matrix, int device, void* stream);

void count_gap_rows(const GapRows& layout, const BitmapTensors& matrix, int32_t* counts, int device, void* stream);
void measure_gap_rows(const GapRows& layout, const BitmapTensors& matrix, const int32_t* order, int32_t* steps,
                      int device, void* stream);
// The data are zeros before.
void pack_gap_rows(const GapRows& layout, const BitmapTensors& matrix, const int32_t* order, const int32_t* index,
                   uint8_t* data, int device, void* stream);
// The bitmaps are zeros before. Waits, as above.
int64_t find_gap_rows(const GapRows& layout, const uint8_t* data, const int32_t* order, const int32_t* index,
                      const BitmapTensors& matrix, int device, void* stream);
void unpack_gap_rows(const GapRows& layout, const uint8_t* data, const int32_t* order, const int32_t* index,
                     const BitmapTensors& matrix, int device, void* stream);

}  // namespace ajour::cuda
