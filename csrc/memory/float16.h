// bfloat16 and float16 as their bits, to and from float: exact one way, rounded to nearest even the other, as torch
// does. Internal linkage, so that no copy compiled for a newer instruction set is ever picked for an older CPU.
#pragma once
#include <cstdint>
#include <cstring>

namespace ajour {

static inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float bfloat16_to_float(uint16_t bits) { return bits_float(uint32_t(bits) << 16); }

static inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40);  // a NaN must not round to infinity
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float float16_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest < 0x0400u)
    return bits_float(sign | float_bits(float(rest) * 0x1p-24f));  // subnormal: an integer times 2^-24
  return bits_float(sign | ((rest << 13) + (112u << 23)));
}

static inline uint16_t float_to_float16(float value) {
  const uint32_t bits = float_bits(value), rest = bits & 0x7fffffffu;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  if (rest > 0x7f800000u) return sign | 0x7e00u | uint16_t(rest >> 13 & 0x3ffu);
  if (rest >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
  if (rest < 0x38800000u) {                        // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded
    return sign | uint16_t(float_bits(bits_float(rest) + 0.5f) - float_bits(0.5f));
  }
  return sign | uint16_t((rest + 0xfffu + (rest >> 13 & 1) - (112u << 23)) >> 13);
}

}  // namespace ajour
