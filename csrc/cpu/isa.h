// Which instruction set the CPU kernels use: chosen once, at the first call.
#pragma once

namespace ajour::cpu {

enum class Isa { portable, avx2, avx512, avx512bf16 };

// The level in use: the best one that this processor has, unless a lower one was forced.
Isa isa();

// The best level that this processor has.
Isa best_isa();

// Its name, as in AJOUR_ISA; on Arm, `portable` is written with NEON.
const char* isa_name(Isa level);

// Forces a level (tests do); throws std::invalid_argument for one that does not exist or that this processor lacks.
void set_isa(const char* name);

}  // namespace ajour::cpu

// AJOUR_PER_ISA(function, Arguments) declares ajour::cpu::<isa>::function(const Arguments&) for every level and,
// outside of the units that are compiled once per level, ajour::cpu::function, which calls the chosen one. Use it
// inside namespace ajour::cpu.
#define AJOUR_DECLARE_ISA(isa, function, Arguments) \
  namespace isa {                                   \
  void function(const Arguments&);                  \
  }
#if defined(__x86_64__)
#define AJOUR_DECLARE_ISAS(function, Arguments)    \
  AJOUR_DECLARE_ISA(portable, function, Arguments) \
  AJOUR_DECLARE_ISA(avx2, function, Arguments)     \
  AJOUR_DECLARE_ISA(avx512, function, Arguments)   \
  AJOUR_DECLARE_ISA(avx512bf16, function, Arguments)
#define AJOUR_CALL_ISA(function, arguments)   \
  switch (isa()) {                            \
    case Isa::avx512bf16:                     \
      return avx512bf16::function(arguments); \
    case Isa::avx512:                         \
      return avx512::function(arguments);     \
    case Isa::avx2:                           \
      return avx2::function(arguments);       \
    default:                                  \
      return portable::function(arguments);   \
  }
#else
#define AJOUR_DECLARE_ISAS(function, Arguments) AJOUR_DECLARE_ISA(portable, function, Arguments)
#define AJOUR_CALL_ISA(function, arguments) return portable::function(arguments);
#endif
#if defined(AJOUR_ISA)
#define AJOUR_PER_ISA(function, Arguments) AJOUR_DECLARE_ISAS(function, Arguments)
#else
#define AJOUR_PER_ISA(function, Arguments) \
  AJOUR_DECLARE_ISAS(function, Arguments)  \
  inline void function(const Arguments& arguments) { AJOUR_CALL_ISA(function, arguments) }
#endif
