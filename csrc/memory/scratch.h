// Memory that a thread works in: kept between calls, so that a kernel pays for its pages once.
#pragma once
#include <cstdint>

namespace ajour {

// At least `bytes` bytes, 64-byte aligned, of the calling thread's own; valid until its next call. Null if there is no
// memory. Grows to the largest request and is freed with the thread; ask for what fits the L2 cache.
void* thread_scratch(int64_t bytes);

// The same, a second one: for what a call shares with the threads that help it, while they use their thread_scratch.
void* call_scratch(int64_t bytes);

// Throws std::bad_alloc: what a kernel does after its threads found no scratch (no exception may leave the pool).
[[noreturn]] void refuse_memory();

}  // namespace ajour
