// N:M slabs packed and unpacked where the weight lies.
#pragma once
#include "layout/nm_slabs.h"

namespace ajour::cuda {

// The slabs that ajour::pack_nm_slabs makes, bit for bit, from canonical tensors on `device`, whose values stand at
// multiples of 2 bytes and slabs at multiples of 16. Both launch on `stream` and return. Throw KernelError if CUDA
// refuses.
void pack_nm_slabs(const NMSlabs& layout, const void* values, const uint8_t* positions, uint8_t* slabs, int device,
                   void* stream);

// The inverse.
void unpack_nm_slabs(const NMSlabs& layout, const uint8_t* slabs, void* values, uint8_t* positions, int device,
                     void* stream);

}  // namespace ajour::cuda
