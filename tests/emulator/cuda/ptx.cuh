// csrc/cuda/ptx.cuh for the emulator: the same functions, after the tables of the PTX ISA (9.7.14.5.8 for mma.m16n8k16,
// 9.7.14.6.2.2 for mma.sp.m16n8k32, 9.7.14.5.15 for ldmatrix), written without looking at how weights are packed.
#pragma once
#include <math.h>

#include <algorithm>

#include "block.h"

#define __device__
#define __forceinline__ inline
#define __noinline__

struct uint2 {
  uint32_t x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct ThreadIndex {
  struct {
    operator int() const { return emulator::Block::current()->thread(); }
  } x;
};
struct BlockIndex {
  struct {
    operator int() const { return emulator::Block::current()->index(); }
  } x;
};
inline ThreadIndex threadIdx;
inline BlockIndex blockIdx;

using std::min;
inline void __syncthreads() { emulator::Block::current()->sync(); }
inline void __syncwarp() {
  emulator::Block::current()->together({}, [](emulator::Exchange&) {});
}
inline void __threadfence() {}
template <class T>
T __ldcg(const T* at) {
  return *at;
}
inline unsigned atomicInc(unsigned* at, unsigned last) {
  const unsigned before = *at;
  *at = before >= last ? 0 : before + 1;
  return before;
}
inline uint32_t __shfl_up_sync(uint32_t, uint32_t value, int away) {
  return uint32_t(emulator::Block::current()->together({value}, [away](emulator::Exchange& all) {
    for (int i = 0; i < 32; ++i) all.taken[i] = all.given[i >= away ? i - away : i];
  })[0]);
}
inline uint32_t __shfl_sync(uint32_t, uint32_t value, int lane) {
  return uint32_t(emulator::Block::current()->together({value}, [lane](emulator::Exchange& all) {
    for (int i = 0; i < 32; ++i) all.taken[i] = all.given[lane];
  })[0]);
}

inline float __shfl_xor_sync(uint32_t, float value, int mask) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = uint32_t(emulator::Block::current()->together({bits}, [mask](emulator::Exchange& all) {
    for (int i = 0; i < 32; ++i) all.taken[i] = all.given[i ^ mask];
  })[0]);
  std::memcpy(&value, &bits, 4);
  return value;
}

namespace ajour::cuda {

enum class Float16Kind { bfloat16, float16 };

namespace ptx {

inline bool kBulk = true;  // sm_90, else sm_80

inline emulator::Block& block() { return *emulator::Block::current(); }
inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  block().barrier(barrier) = {arrivals, arrivals, 0, 0};
}
inline void barrier_init_done() {}
inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  emulator::Barrier& found = block().barrier(barrier);
  if (!found.expected) emulator::fail("a barrier is used before it is initialized");
  while ((found.phase & 1) == parity) block().wait(&found.phase, found.phase);
}

inline void copy_16(void* to, const void* from, int valid) {
  block().check_target(to, 16);
  block().check_source(from, size_t(valid));
  if (reinterpret_cast<uintptr_t>(from) % 16) emulator::fail("a copy reads off a multiple of 16 bytes");
  std::memset(to, 0xff, 16);
  block().later(block().copies_of_thread(), [=] {
    std::memset(to, 0, 16);
    std::memcpy(to, from, size_t(valid));
  });
}
inline void copies_commit() { block().close_group(); }
inline void copies_wait(int pending) { block().wait_groups(uint64_t(pending)); }
inline void arrive_with_copies(uint64_t* barrier) {
  emulator::Barrier& found = block().barrier(barrier);
  block().later(block().copies_of_thread(), [&found] { found.arrive(); });
}
inline void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  if (!bytes) emulator::fail("a barrier expects no bytes");
  block().barrier(barrier).bytes += bytes;
  block().barrier(barrier).arrive();
}
inline void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  block().check_target(to, bytes);
  block().check_source(from, bytes);
  if (bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16) emulator::fail("a bulk copy is not in units of 16 bytes");
  std::memset(to, 0xff, bytes);
  emulator::Barrier& found = block().barrier(barrier);
  block().later(block().new_queue(), [=, &found] {
    std::memcpy(to, from, bytes);
    found.bytes -= bytes;
    found.settle();
  });
}

template <class T>
T load_once(const void* from) {
  block().check_source(from, sizeof(T));
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T)) emulator::fail("a load is off a multiple of its size");
  T found;
  std::memcpy(&found, from, sizeof found);
  return found;
}
inline uint2 load_once_8(const void* from) {
  const uint64_t found = load_once<uint64_t>(from);
  return {uint32_t(found), uint32_t(found >> 32)};
}
inline uint32_t load_once_4(const void* from) { return load_once<uint32_t>(from); }

// Rows of one matrix that share a bank would be read one after the other.
inline void check_banks(const uint64_t* rows) {
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < i; ++j) {
      if (rows[i] != rows[j] && rows[i] / 16 % 8 == rows[j] / 16 % 8) emulator::fail("ldmatrix meets a bank twice");
    }
  }
}
inline void load_matrices(uint32_t (&b)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) emulator::fail("ldmatrix reads off a multiple of 16 bytes");
  const auto found = block().together({reinterpret_cast<uint64_t>(row)}, [](emulator::Exchange& all) {
    uint64_t rows[32];
    for (int i = 0; i < 32; ++i) rows[i] = all.given[i][0];
    for (int matrix = 0; matrix < 4; ++matrix) check_banks(rows + 8 * matrix);
    for (int lane = 0; lane < 32; ++lane) {
      all.taken[lane].assign(4, 0);
      for (int matrix = 0; matrix < 4; ++matrix) {
        const uint8_t* from = reinterpret_cast<const uint8_t*>(rows[8 * matrix + lane / 4]) + lane % 4 * 4;
        uint32_t word;
        std::memcpy(&word, from, 4);
        all.taken[lane][size_t(matrix)] = word;
      }
    }
  });
  for (size_t i = 0; i < 4; ++i) b[i] = uint32_t(found[i]);
}

template <Float16Kind Kind>
float to_float(uint16_t bits) {
  if constexpr (Kind == Float16Kind::bfloat16) return as_float(uint32_t(bits) << 16);
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return float(value);
}
template <Float16Kind Kind>
uint16_t from_float(float value) {
  if constexpr (Kind == Float16Kind::bfloat16) {
    const uint32_t bits = as_bits(value);
    if (value != value) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  } else {
    const _Float16 half = _Float16(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
}

// Element i of a fragment whose 32-bit registers hold two each.
template <Float16Kind Kind>
float element(const std::vector<uint64_t>& words, int first, int i) {
  return to_float<Kind>(uint16_t(words[size_t(first + i / 2)] >> i % 2 * 16));
}

inline void give_back(emulator::Exchange& all, const double (&d)[16][8]) {
  for (int lane = 0; lane < 32; ++lane) {
    all.taken[lane].assign(4, 0);
    for (int i = 0; i < 4; ++i) {  // c_i: row groupID (+ 8 for i >= 2), column threadID_in_group * 2 + (i & 1)
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
      const float before = as_float(uint32_t(all.given[lane][size_t(i)]));
      all.taken[lane][size_t(i)] = as_bits(float(double(before) + d[row][column]));
    }
  }
}

template <Float16Kind Kind>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  std::vector<uint64_t> given;
  for (float each : d) given.push_back(as_bits(each));
  for (uint32_t each : a) given.push_back(each);
  given.push_back(b0);
  given.push_back(b1);
  const auto found = block().together(std::move(given), [](emulator::Exchange& all) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, in_group = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
        const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
        a[row][column] = element<Kind>(all.given[lane], 4, i);
      }
      for (int i = 0; i < 4; ++i)
        b[in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = element<Kind>(all.given[lane], 8, i);
    }
    double sums[16][8] = {};
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        for (int k = 0; k < 16; ++k) sums[i][j] += double(a[i][k]) * double(b[k][j]);
      }
    }
    give_back(all, sums);
  });
  for (size_t i = 0; i < 4; ++i) d[i] = as_float(uint32_t(found[i]));
}

template <Float16Kind Kind, int Selector>
void mma_sparse(float (&d)[4], const uint4& a, const uint32_t (&b)[4], uint32_t metadata) {
  std::vector<uint64_t> given;
  for (float each : d) given.push_back(as_bits(each));
  for (uint32_t each : {a.x, a.y, a.z, a.w}) given.push_back(each);
  for (uint32_t each : b) given.push_back(each);
  given.push_back(metadata);
  const auto found = block().together(std::move(given), [](emulator::Exchange& all) {
    float b[32][8];
    double sums[16][8] = {};
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i)
        b[lane % 4 * 2 + (i & 1) + i / 2 * 8][lane / 4] = element<Kind>(all.given[lane], 8, i);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, in_group = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
        const int first_column = in_group * 4 + (i < 4 ? 0 : 16);
        // of the two contributing threads the first one describes columns 0 to 15, the other one 16 to 31; the lower
        // half of its word row groupID, the upper half groupID + 8
        const int holder = group * 4 + Selector * 2 + first_column / 16;
        const uint32_t word = uint32_t(all.given[holder][12]);
        const uint32_t code = word >> (row >= 8 ? 16 : 0) >> first_column % 16 & 15;
        if ((code & 3) >= code >> 2) emulator::fail("metadata out of order");
        const int column = first_column + int(i & 1 ? code >> 2 : code & 3);
        const double value = element<Kind>(all.given[lane], 4, i);
        for (int j = 0; j < 8; ++j) sums[row][j] += value * double(b[column][j]);
      }
    }
    give_back(all, sums);
  });
  for (size_t i = 0; i < 4; ++i) d[i] = as_float(uint32_t(found[i]));
}

inline uint32_t shift_left(uint32_t value, int by) { return uint32_t(by) > 31 ? 0 : value << by; }
inline uint64_t shift_left(uint64_t value, int by) { return uint32_t(by) > 63 ? 0 : value << by; }
inline uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t which) {
  const uint64_t both = low | uint64_t(high) << 32;
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i) {
    if (which >> 4 * i & 8) emulator::fail("a byte is picked for its sign");
    picked |= uint32_t(both >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return picked;
}

}  // namespace ptx
}  // namespace ajour::cuda
