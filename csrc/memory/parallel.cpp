#include "memory/parallel.h"

#include "torch_abi/functions.h"

namespace ajour {

int64_t thread_count() {
  uint32_t count = 1;
  torch_abi::check(torch_abi::functions.torch_get_num_threads(&count));
  return count;
}

void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  if (end <= begin) return;
  if (end - begin <= grain) return body(begin, end, context);
  torch_abi::check(torch_abi::functions.torch_parallel_for(begin, end, grain, body, context));
}

}  // namespace ajour
