// Rows of x rounded to e4m3 under a power of two each, as formats/e4m3.py says.
#pragma once
#include <cstdint>

namespace ajour::cuda {

// rounded: [m, width] e4m3, zeros from column k on, and scales: [m], from x: [m, k] in 16-bit floats, rows x_stride
// elements apart. width is a multiple of 8. Launches on `stream` of `device` and returns; throws KernelError if CUDA
// refuses.
void round_rows(const void* x, int64_t x_stride, int m, int k, int width, bool bfloat16, uint8_t* rounded,
                float* scales, int device, void* stream);

}  // namespace ajour::cuda
