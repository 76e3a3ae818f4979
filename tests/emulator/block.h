// A thread block on the CPU: every thread a fiber, run in random order and one warp far behind the others, so that what
// a barrier has to order comes in every order. Asynchronous copies land at random moments, as late as possible; until
// then their target is poisoned.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <vector>

namespace emulator {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::exit(3);
}

struct Barrier {
  uint32_t expected = 0, pending = 0;
  int64_t bytes = 0;
  uint64_t phase = 0;

  void settle() {
    if (pending || bytes) return;
    pending = expected;
    ++phase;
  }
  void arrive() {
    if (!pending) fail("more arrivals than a barrier expects");
    --pending;
    settle();
  }
};

// What 32 lanes bring to one instruction, and what they take back.
struct Exchange {
  uint64_t generation = 0;
  int arrived = 0;
  std::vector<uint64_t> given[32];
  std::vector<uint64_t> taken[32];
};

class Block {
 public:
  static Block*& current() {
    static Block* block = nullptr;
    return block;
  }

  Block(int index, uint64_t seed, std::function<void(uint8_t*)> body, size_t shared_bytes, int threads = 128)
      : index_(index),
        random_(seed),
        body_(std::move(body)),
        memory_(shared_bytes + 128, 0xff),
        fibers_(size_t(threads)),
        warps_(size_t(threads / 32)),
        next_queue_(threads) {
    shared_ = memory_.data() + (128 - reinterpret_cast<uintptr_t>(memory_.data()) % 128) % 128;
    shared_size_ = shared_bytes;
    current() = this;
  }

  void run();

  int thread() const { return running_; }
  int threads() const { return int(fibers_.size()); }
  int index() const { return index_; }
  uint8_t* shared() const { return shared_; }

  // Lets others run until *counter is no longer `seen`.
  void wait(const uint64_t* counter, uint64_t seen) {
    fibers_[running_].counter = counter;
    fibers_[running_].seen = seen;
    if (_setjmp(fibers_[running_].place) == 0) _longjmp(scheduler_, 1);
  }

  void sync() {
    const uint64_t seen = sync_generation_;
    if (++sync_arrived_ == threads()) {
      sync_arrived_ = 0;
      ++sync_generation_;
    } else {
      wait(&sync_generation_, seen);
    }
  }

  // Every lane of a warp gives some words; the last one calls `work`, and all get their own back.
  std::vector<uint64_t> together(std::vector<uint64_t> given, const std::function<void(Exchange&)>& work) {
    Exchange& all = warps_[running_ / 32];
    const int lane = running_ % 32;
    const uint64_t seen = all.generation;
    all.given[lane] = std::move(given);
    if (++all.arrived == 32) {
      work(all);
      all.arrived = 0;
      ++all.generation;
    } else {
      wait(&all.generation, seen);
    }
    return warps_[running_ / 32].taken[lane];
  }

  Barrier& barrier(const void* at) { return barriers_[at]; }

  void check_target(const void* to, size_t bytes) const {
    const uint8_t* at = static_cast<const uint8_t*>(to);
    if (at < shared_ || at + bytes > shared_ + shared_size_) fail("a copy lands outside shared memory");
    if (reinterpret_cast<uintptr_t>(to) % 16) fail("a copy lands off a multiple of 16 bytes");
  }

  // Global memory that may be read by copies.
  std::vector<std::pair<const uint8_t*, size_t>> readable;
  void check_source(const void* from, size_t bytes) const {
    const uint8_t* at = static_cast<const uint8_t*>(from);
    for (const auto& [begin, size] : readable) {
      if (at >= begin && at + bytes <= begin + size) return;
    }
    if (bytes) fail("a copy reads outside its tensor");
  }

  // Something that happens later, after whatever this thread put off before in the same queue.
  void later(int queue, std::function<void()> what) { queues_[queue].push_back(std::move(what)); }
  int copies_of_thread() const { return running_; }

  // Groups of this thread's copies: closing one, and waiting until at most `pending` have not landed.
  void close_group() {
    Fiber& fiber = fibers_[running_];
    auto& copies = queues_[copies_of_thread()];
    ++fiber.closed;
    if (copies.empty()) {
      ++fiber.landed;
    } else {  // with the last copy before it
      copies.back() = [&fiber, copy = std::move(copies.back())] {
        copy();
        ++fiber.landed;
      };
    }
  }
  void wait_groups(uint64_t pending) {
    Fiber& fiber = fibers_[running_];
    while (fiber.closed - fiber.landed > pending) wait(&fiber.landed, fiber.landed);
  }
  int new_queue() { return next_queue_++; }

 private:
  struct Fiber {
    jmp_buf place;
    std::vector<uint8_t> stack;
    bool started = false, done = false;
    const uint64_t* counter = nullptr;
    uint64_t seen = 0;
    uint64_t closed = 0, landed = 0;
    bool ready() const { return !done && (!counter || *counter != seen); }
  };

  bool land_one() {
    for (auto it = queues_.begin(); it != queues_.end();) it = it->second.empty() ? queues_.erase(it) : std::next(it);
    if (queues_.empty()) return false;
    auto it = queues_.begin();
    std::advance(it, random_() % queues_.size());
    const auto what = std::move(it->second.front());
    it->second.pop_front();
    what();
    return true;
  }

  static void enter();
  void start(int i);

  int index_, running_ = 0;
  std::mt19937_64 random_;
  std::function<void(uint8_t*)> body_;
  std::vector<uint8_t> memory_;
  uint8_t* shared_;
  size_t shared_size_;
  std::vector<Fiber> fibers_;
  jmp_buf scheduler_;
  uint64_t sync_generation_ = 0;
  int sync_arrived_ = 0;
  int laggard_ = 0;  // this warp runs only when no other can, until it is another's turn to be late
  std::vector<Exchange> warps_;
  std::map<const void*, Barrier> barriers_;
  std::map<int, std::deque<std::function<void()>>> queues_;
  int next_queue_;
};

}  // namespace emulator
