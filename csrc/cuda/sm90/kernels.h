// Which configurations of the kernels for sm_90a were built: the same names for both dtypes.
#pragma once
#include <string>
#include <vector>

#include "cuda/sm90/linear.h"

namespace ajour::cuda {

// In the order of AJOUR_SM90_CONFIGS, the default first.
const std::vector<Sm90Kernel>& sm90_kernels();

// Throws KernelError if there is none of this name.
const Sm90Kernel& sm90_kernel(const std::string& name, bool bfloat16);

}  // namespace ajour::cuda
