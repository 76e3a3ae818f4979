#include "cuda/nm_slabs.h"
#include "cuda/on_device.h"
#include "layout/nm.h"
#include "layout/nm_slab_words.h"

namespace ajour::cuda {
namespace {

constexpr int kThreads = 256;

// A block for each slab, the slab of zeros that ends them too.
__global__ void __launch_bounds__(kThreads) pack(NMSlabs layout, NMRows from, uint32_t* slabs) {
  const int64_t slab = blockIdx.x;
  const int words = layout.slab_bytes / 4;
  for (int word = threadIdx.x; word < words; word += kThreads) {
    slabs[slab * words + word] = packed_word(layout, from, slab, word);
  }
}

// A block for each row of the weight.
__global__ void __launch_bounds__(kThreads)
    unpack(NMSlabs layout, const uint8_t* slabs, int64_t kept, int64_t width, uint16_t* values, uint8_t* positions) {
  const int64_t row = blockIdx.x;
  for (int64_t entry = threadIdx.x; entry < kept; entry += kThreads) {
    values[row * kept + entry] = *reinterpret_cast<const uint16_t*>(slabs + place_of(layout, row, entry).value);
  }
  for (int64_t byte = threadIdx.x; byte < width; byte += kThreads) {
    positions[row * width + byte] = position_byte(layout, slabs, kept, row, byte);
  }
}

}  // namespace

void pack_nm_slabs(const NMSlabs& layout, const void* values, const uint8_t* positions, uint8_t* slabs, int device,
                   void* stream) {
  const NMLayout canonical{layout.keep, layout.group};
  const NMRows from{static_cast<const uint16_t*>(values),
                    positions,
                    layout.n,
                    canonical.kept(layout.k),
                    canonical.position_bytes(layout.k),
                    NMSlabs::position_bits(layout.group)};
  const OnDevice on(device);
  pack<<<unsigned(layout.panels() * layout.slabs() + 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      layout, from, reinterpret_cast<uint32_t*>(slabs));
  check(cudaGetLastError(), "packing of slabs");
}

void unpack_nm_slabs(const NMSlabs& layout, const uint8_t* slabs, void* values, uint8_t* positions, int device,
                     void* stream) {
  if (!layout.n) return;
  const NMLayout canonical{layout.keep, layout.group};
  const OnDevice on(device);
  unpack<<<unsigned(layout.n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      layout, slabs, canonical.kept(layout.k), canonical.position_bytes(layout.k), static_cast<uint16_t*>(values),
      positions);
  check(cudaGetLastError(), "unpacking of slabs");
}

}  // namespace ajour::cuda
