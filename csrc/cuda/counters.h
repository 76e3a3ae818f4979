// Counters of what several blocks share: zero before a launch and zero after it, so that no launch clears them first.
#pragma once
#include <cuda_runtime_api.h>

namespace ajour::cuda {

// `count` counters for one launch on `stream` of the current device, `device`. They are zero, and the launch must leave
// them so (`atomicInc` up to the last arrival does). Safe while a graph is captured. Throws KernelError.
//
// Two launches may share counters only if one begins after the other has ended. Those of a stream do: they share its
// counters. A captured launch has counters of its own, as its graph can be replayed beside anything, another graph of
// the same layer included; they come back with the end of the last graph that holds them. Two executions of one
// captured graph never run at once on one instance of it (CUDA orders them), and torch makes one instance.
unsigned* counters_for(int device, cudaStream_t stream, int count);

}  // namespace ajour::cuda
