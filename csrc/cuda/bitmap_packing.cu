#include "cuda/bitmap_packing.h"
#include "cuda/canonical.h"
#include "cuda/each.cuh"
#include "layout/bitmap_slab_words.h"
#include "layout/gap_codes.h"

namespace ajour::cuda {
namespace {

template <class Work>
void run(const Work& work, int device, void* stream) {
  const OnDevice on(device);
  each(work, static_cast<cudaStream_t>(stream));
}

}  // namespace

void pack_bitmap_slabs(const BitmapSlabs& s, const BitmapTensors& matrix, const int32_t* index, uint8_t* slabs,
                       int device, void* stream) {
  run(PackBitmapSlabs{s, {matrix, s.n, s.k}, index, slabs}, device, stream);
}

int64_t find_bitmap_slabs(const BitmapSlabs& s, const uint8_t* slabs, const int32_t* index, const BitmapTensors& matrix,
                          int device, void* stream) {
  const OnDevice on(device);
  const FindBitmapSlabs found{s, slabs, index, {matrix, s.n, s.k}};
  each(found, static_cast<cudaStream_t>(stream));
  return count_values(found.to, stream);
}

void unpack_bitmap_slabs(const BitmapSlabs& s, const uint8_t* slabs, const int32_t* index, const BitmapTensors& matrix,
                         int device, void* stream) {
  run(UnpackBitmapSlabs{s, slabs, index, {matrix, s.n, s.k}}, device, stream);
}

void count_gap_rows(const GapRows& w, const BitmapTensors& matrix, int32_t* counts, int device, void* stream) {
  run(CountGapRows{w, {matrix, w.n, w.k}, counts}, device, stream);
}

void measure_gap_rows(const GapRows& w, const BitmapTensors& matrix, const int32_t* order, int32_t* steps, int device,
                      void* stream) {
  run(MeasureGapRows{w, {matrix, w.n, w.k}, order, steps}, device, stream);
}

void pack_gap_rows(const GapRows& w, const BitmapTensors& matrix, const int32_t* order, const int32_t* index,
                   uint8_t* data, int device, void* stream) {
  run(PackGapRows{w, {matrix, w.n, w.k}, order, index, data}, device, stream);
}

int64_t find_gap_rows(const GapRows& w, const uint8_t* data, const int32_t* order, const int32_t* index,
                      const BitmapTensors& matrix, int device, void* stream) {
  const OnDevice on(device);
  const FindGapRows found{w, data, order, index, {matrix, w.n, w.k}};
  each(found, static_cast<cudaStream_t>(stream));
  return count_values(found.to, stream);
}

void unpack_gap_rows(const GapRows& w, const uint8_t* data, const int32_t* order, const int32_t* index,
                     const BitmapTensors& matrix, int device, void* stream) {
  run(UnpackGapRows{w, data, order, index, {matrix, w.n, w.k}}, device, stream);
}

}  // namespace ajour::cuda
