// For code that the host and a device run alike, so that the host can test it.
#pragma once

#ifdef __CUDACC__
#define AJOUR_BOTH __host__ __device__ __forceinline__
#define AJOUR_UNROLL_BOTH _Pragma("unroll")  // before a loop whose arrays belong in a device's registers
#else
#define AJOUR_BOTH inline
#define AJOUR_UNROLL_BOTH
#endif
