// Which configurations of the kernels for sm_90a were built.
#pragma once
#include <string>
#include <vector>

#include "cuda/sm90/linear.h"

namespace ajour::cuda {

// Of each dtype in the order of AJOUR_SM90_CONFIGS, its default first.
const std::vector<Sm90Kernel>& sm90_kernels();

// Throws KernelError if there is none of this name and dtype ("bfloat16", "float16", "e4m3").
const Sm90Kernel& sm90_kernel(const std::string& name, const std::string& dtype);

}  // namespace ajour::cuda
