#include "cpu/isa.h"

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

namespace ajour::cpu {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512bf16"};

// Demands every extension that CMakeLists.txt compiles the level with.
Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  if (!avx2) return Isa::portable;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return Isa::avx2;
  const bool bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
                    __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vpopcntdq") &&
                    __builtin_cpu_supports("avx512bitalg");
  return bf16 ? Isa::avx512bf16 : Isa::avx512;
#else
  return Isa::portable;
#endif
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> level{best_isa()};
  return level;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed); }

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

const char* isa_name(Isa level) { return kNames[static_cast<int>(level)]; }

void set_isa(const char* name) {
  for (int level = 0; level <= static_cast<int>(best_isa()); level++) {
    if (std::strcmp(name, kNames[level]) == 0)
      return chosen().store(static_cast<Isa>(level), std::memory_order_relaxed);
  }
  throw std::invalid_argument(std::string("this processor has no instruction set '") + name + "'; its best is " +
                              isa_name(best_isa()));
}

}  // namespace ajour::cpu
