#include "memory/parallel.h"

#include <dlfcn.h>

#include <stdexcept>

namespace ajour {
namespace {

using Body = void (*)(int64_t, int64_t, void*);
using ParallelFor = int32_t (*)(int64_t, int64_t, int64_t, Body, void*);
using ThreadCount = int32_t (*)(uint32_t*);
ParallelFor torch_parallel_for = nullptr;
ThreadCount torch_get_num_threads = nullptr;

}  // namespace

void bind_thread_pool() {
  void* library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  if (!library) throw std::runtime_error("libtorch_cpu.so is not loaded: import torch before ajour");
  torch_parallel_for = reinterpret_cast<ParallelFor>(dlsym(library, "torch_parallel_for"));
  torch_get_num_threads = reinterpret_cast<ThreadCount>(dlsym(library, "torch_get_num_threads"));
  if (!torch_parallel_for || !torch_get_num_threads) {
    throw std::runtime_error("this torch has no torch_parallel_for: ajour needs torch 2.10 or newer");
  }
}

int64_t thread_count() {
  uint32_t count = 1;
  if (torch_get_num_threads(&count) != 0) throw std::runtime_error("torch's thread pool failed");
  return count;
}

void parallel_for(int64_t begin, int64_t end, int64_t grain, Body body, void* context) {
  if (end <= begin) return;
  if (end - begin <= grain) return body(begin, end, context);
  if (torch_parallel_for(begin, end, grain, body, context) != 0) throw std::runtime_error("torch's thread pool failed");
}

}  // namespace ajour
