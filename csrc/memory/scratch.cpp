#include "memory/scratch.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <cstdlib>
#include <new>

namespace ajour {
namespace {

constexpr int64_t kHugePage = 2 << 20, kWorthHugePage = 128 << 10;

// Memory on huge pages where it is large and the system has some to give: columns of x from anywhere in it then miss
// neither the TLB nor, by an unlucky choice of pages, the L2 cache.
void* allocate(int64_t bytes, int64_t& size) {
  const int64_t page = bytes >= kWorthHugePage ? kHugePage : 4096;
  size = (bytes + page - 1) / page * page;
  void* data = std::aligned_alloc(size_t(page), size_t(size));
#if defined(MADV_HUGEPAGE)
  if (data && page == kHugePage) madvise(data, size_t(size), MADV_HUGEPAGE);  // advice: a refusal changes nothing
#endif
  return data;
}

struct Scratch {
  ~Scratch() { std::free(data); }
  void* grown_to(int64_t bytes) {
    if (bytes > size) {
      std::free(data);
      data = allocate(bytes, size);
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
