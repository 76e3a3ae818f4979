// What the CUDA runtime says of the machine.
#pragma once

namespace ajour::cuda {

// Number of devices; 0 where there is no driver. Starts no context.
int device_count();

}  // namespace ajour::cuda
