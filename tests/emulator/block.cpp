#include "block.h"

#include <ucontext.h>

namespace emulator {

namespace {
ucontext_t entering, returning;
}

void Block::enter() {
  Block& block = *current();
  block.body_(block.shared_);
  block.fibers_[block.running_].done = true;
  _longjmp(block.scheduler_, 1);
}

void Block::start(int i) {
  Fiber& fiber = fibers_[i];
  fiber.started = true;
  fiber.stack.resize(256 << 10);
  getcontext(&entering);
  entering.uc_stack.ss_sp = fiber.stack.data();
  entering.uc_stack.ss_size = fiber.stack.size();
  entering.uc_link = &returning;
  makecontext(&entering, enter, 0);
  setcontext(&entering);
}

void Block::run() {
  // volatile: they live across longjmp
  volatile int left = threads();
  while (left) {
    while (random_() % 8 == 0 && land_one()) {
    }
    if (random_() % 4096 == 0) laggard_ = int(random_() % warps_.size());
    std::vector<int> ready, late;
    for (int i = 0; i < threads(); ++i) {
      if (fibers_[i].ready()) (i / 32 == laggard_ ? late : ready).push_back(i);
    }
    if (ready.empty()) ready = late;
    if (ready.empty()) {
      if (!land_one()) fail("deadlock: every thread waits, and no copy is under way");
      continue;
    }
    running_ = ready[random_() % ready.size()];
    fibers_[running_].counter = nullptr;
    if (_setjmp(scheduler_) == 0) {
      if (fibers_[running_].started) _longjmp(fibers_[running_].place, 1);
      start(running_);
    }
    if (fibers_[running_].done) left = left - 1;
  }
  if (land_one()) fail("the block ended before its copies landed");
}

}  // namespace emulator
