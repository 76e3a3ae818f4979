#include "memory/scratch.h"

#include <cstdlib>
#include <new>

namespace ajour {
namespace {

struct Scratch {
  ~Scratch() { std::free(data); }
  void* grown_to(int64_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = (bytes + 4095) / 4096 * 4096;
      data = std::aligned_alloc(64, size_t(size));
      if (!data) size = 0;
    }
    return data;
  }
  void* data = nullptr;
  int64_t size = 0;
};

thread_local Scratch of_thread, of_call;

}  // namespace

void* thread_scratch(int64_t bytes) { return of_thread.grown_to(bytes); }

void* call_scratch(int64_t bytes) { return of_call.grown_to(bytes); }

void refuse_memory() { throw std::bad_alloc(); }

}  // namespace ajour
