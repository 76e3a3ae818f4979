#include <vector>

#include "cuda/canonical.h"
#include "cuda/each.cuh"
#include "layout/nm_groups.h"

namespace ajour::cuda {

void pack_nm(const NMLayout& layout, const WeightView& w, void* values, uint8_t* positions, int32_t* refused,
             int device, void* stream) {
  const OnDevice on(device);
  const auto queue = static_cast<cudaStream_t>(stream);
  check(cudaMemsetAsync(refused, 0, sizeof *refused, queue), "cudaMemsetAsync");
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    each(PackGroups<Word>{layout, w, static_cast<Word*>(values), refused}, queue);
    each(PackPositions<Word>{layout, w, positions}, queue);
  });
}

void unpack_nm(const NMLayout& layout, const void* values, const uint8_t* positions, const WeightView& w, int device,
               void* stream) {
  const OnDevice on(device);
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    each(UnpackGroups<Word>{layout, static_cast<const Word*>(values), positions, w}, static_cast<cudaStream_t>(stream));
  });
}

int64_t count_values(const BitmapTiles& tiles, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const CountGroups groups{tiles};
  each(groups, queue);
  std::vector<int32_t> offsets(size_t(groups.count() + 1));
  const size_t bytes = offsets.size() * sizeof(int32_t);
  check(cudaMemcpyAsync(offsets.data(), tiles.tensors.offsets, bytes, cudaMemcpyDeviceToHost, queue), "offsets");
  check(cudaStreamSynchronize(queue), "packing of a weight");
  const int64_t values = sum_offsets(offsets.data(), groups.count());
  check(cudaMemcpyAsync(tiles.tensors.offsets, offsets.data(), bytes, cudaMemcpyHostToDevice, queue), "offsets");
  check(cudaStreamSynchronize(queue), "packing of a weight");  // the copy reads what ends here
  return values;
}

int64_t find_nonzeros(const WeightView& w, const BitmapTensors& tensors, int device, void* stream) {
  const OnDevice on(device);
  const BitmapTiles to{tensors, w.n, w.k};
  by_word(w.itemsize, [&](auto zero) { each(FindTiles<decltype(zero)>{w, to}, static_cast<cudaStream_t>(stream)); });
  return count_values(to, stream);
}

void pack_bitmap(const WeightView& w, const BitmapTensors& tensors, int device, void* stream) {
  const OnDevice on(device);
  by_word(w.itemsize, [&](auto zero) {
    each(PackTiles<decltype(zero)>{w, {tensors, w.n, w.k}}, static_cast<cudaStream_t>(stream));
  });
}

void unpack_bitmap(const BitmapTensors& tensors, const WeightView& w, int device, void* stream) {
  const OnDevice on(device);
  by_word(w.itemsize, [&](auto zero) {
    each(UnpackTiles<decltype(zero)>{{tensors, w.n, w.k}, w}, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace ajour::cuda
