// The one way to refuse: a typed error whose text names the place, what was expected and what was found.
#pragma once
#include <atomic>
#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace ajour {

// Each becomes the Python error of the same name (terms/errors.py).
struct PatternError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class Error, class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

// The smallest place that any thread reports. No exception may leave a thread of the pool: the caller refuses
// afterwards.
class FirstPlace {
 public:
  void report(int64_t place) {
    int64_t known = place_.load(std::memory_order_relaxed);
    while (place < known && !place_.compare_exchange_weak(known, place, std::memory_order_relaxed)) {
    }
  }
  bool found() const { return place() != std::numeric_limits<int64_t>::max(); }
  int64_t place() const { return place_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> place_{std::numeric_limits<int64_t>::max()};
};

}  // namespace ajour
