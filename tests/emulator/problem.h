// What every emulated kernel's program does: reads a problem, runs blocks in random order, says what went wrong.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "block.h"

namespace emulator {

template <class T>
std::vector<T> read(std::ifstream& in, int64_t count) {
  std::vector<T> found(static_cast<size_t>(count));
  in.read(reinterpret_cast<char*>(found.data()), std::streamsize(found.size() * sizeof(T)));
  if (!in) throw std::runtime_error("the problem file is too short");
  return found;
}

template <class T>
struct Aligned {  // by 16 bytes, and a few elements on
  explicit Aligned(const std::vector<T>& from, int64_t offset = 0) : memory(from.size() + 16 + size_t(offset)) {
    at = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16 / sizeof(T) + offset;
    std::copy(from.begin(), from.end(), at);
  }
  std::vector<T> memory;
  T* at;
};

// Global memory that copies may read.
using Readable = std::vector<std::pair<const uint8_t*, size_t>>;

// Blocks one after the other, in random order; `body` gets a block's shared memory.
template <class Body>
void each_block(int64_t seed, int blocks, int threads, int64_t shared_bytes, const Readable& readable,
                const Body& body) {
  std::vector<int> order;
  for (int i = 0; i < blocks; ++i) order.push_back(i);
  std::mt19937_64 random(static_cast<uint64_t>(seed));
  std::shuffle(order.begin(), order.end(), random);
  for (int index : order) {
    Block block(index, random(), body, size_t(shared_bytes), threads);
    block.readable = readable;
    block.run();
  }
}

// Launches on one stream, one after the other: each finds parts that hold anything, and the counters as the one before
// left them, which must be zero.
template <class Call, class Body>
void launch_all(int64_t launches, Call& call, int64_t scratch_bytes, int counters, const Body& launch) {
  const int64_t size = int64_t(call.m) * call.n;
  std::vector<unsigned> counted(static_cast<size_t>(counters));
  std::vector<uint16_t> first;
  for (int64_t i = 0; i < launches; ++i) {
    const Aligned<uint8_t> scratch(std::vector<uint8_t>(size_t(scratch_bytes), 0xff));  // as floats NaN
    call.scratch = scratch.at;
    call.counters = scratch_bytes ? counted.data() : nullptr;
    launch();
    if (std::any_of(counted.begin(), counted.end(), [](unsigned c) { return c; })) {
      fail("a launch left its counters other than it found them");
    }
    const std::vector<uint16_t> found(call.y, call.y + size);
    if (i && found != first) fail("a second launch gave other bits");
    first = found;
    std::fill(call.y, call.y + (i + 1 < launches ? size : 0), uint16_t(0x7fc1));
  }
}

// main: `work` reads the file of the first argument and writes that of the second.
inline int run_program(char** arguments, void (*work)(const char* problem, const char* result)) {
  try {
    work(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  return 0;
}

}  // namespace emulator
