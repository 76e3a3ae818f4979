// Bugs for compute-sanitizer to find, one for each of its tools: planted memcheck|racecheck|initcheck|synccheck.
#include <cstdio>
#include <cstring>

__global__ void memcheck(int* data) { data[threadIdx.x + 1] = 1; }  // one element too far

__global__ void racecheck(int* data) {
  __shared__ int held[64];
  held[threadIdx.x] = threadIdx.x;
  data[threadIdx.x] = held[63 - threadIdx.x];  // no barrier before
}

__global__ void initcheck(int* data) { data[threadIdx.x] += 1; }  // nobody wrote it

__global__ void synccheck(int* data) {
  if (threadIdx.x < 40) __syncthreads();  // not everyone comes
  data[threadIdx.x] = 0;
}

int main(int, char** arguments) {
  int* data = nullptr;
  cudaMalloc(&data, 64 * sizeof(int));
  const char* tool = arguments[1];
  if (!std::strcmp(tool, "memcheck")) memcheck<<<1, 64>>>(data);
  if (!std::strcmp(tool, "racecheck")) racecheck<<<1, 64>>>(data);
  if (!std::strcmp(tool, "initcheck")) initcheck<<<1, 64>>>(data);
  if (!std::strcmp(tool, "synccheck")) synccheck<<<1, 64>>>(data);
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}
