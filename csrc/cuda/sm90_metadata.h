// The metadata of `wgmma.sp`, packed where the weight lies.
#pragma once
#include "layout/sm90_metadata.h"

namespace ajour::cuda {

// As the functions of the same names in layout/; launch on `stream` of `device` and return. The metadata must be
// aligned to 16 bytes. Throw KernelError if CUDA refuses.
void pack_sm90_metadata(const Sm90Metadata& layout, const uint8_t* positions, uint8_t* metadata, int device,
                        void* stream);
void unpack_sm90_metadata(const Sm90Metadata& layout, const uint8_t* metadata, uint8_t* positions, int device,
                          void* stream);

}  // namespace ajour::cuda
