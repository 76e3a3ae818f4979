// torch's own intra-op thread pool, through its C ABI: no second pool, no torch headers, no OpenMP.
#pragma once
#include <cstdint>

namespace ajour {

// How many threads parallel_for may use: torch.get_num_threads().
int64_t thread_count();

// Runs body(begin, end, context) over [begin, end) in pieces of at least `grain`; 2 us for a region (Zen 5, 2 threads).
void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

// The same for a callable: parallel_for(0, panels, 1, [&](int64_t first, int64_t last) { ... }).
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  parallel_for(
      begin, end, grain,
      [](int64_t first, int64_t last, void* context) { (*static_cast<const Body*>(context))(first, last); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace ajour
