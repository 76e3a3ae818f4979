// Two bugs, compiled into `make sanitize`'s build alone: tests/sanitizers/planted.py runs them to show that it sees
// such.
#include <cstdint>

#define PLANTED extern "C" __attribute__((visibility("default"), noinline))

// Reads one float behind an array of `count`.
PLANTED float ajour_planted_overflow(const float* values, int64_t count) { return values[count]; }

// Adds without room for the sum.
PLANTED int32_t ajour_planted_undefined(int32_t large) { return large + large; }
