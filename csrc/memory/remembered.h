// What was made of a key, made once; for things that are nothing but a function of their key.
#pragma once
#include <map>
#include <mutex>

namespace ajour {

// Holds no more than `most` of them: beyond that, all are forgotten, and made again when they are asked for.
template <class Key, class Made>
class Remembered {
 public:
  explicit Remembered(size_t most) : most_(most) {}

  template <class Make>
  Made of(const Key& key, const Make& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = held_.find(key);
    if (found != held_.end()) return found->second;
    if (held_.size() >= most_) held_.clear();
    return held_.emplace(key, make()).first->second;
  }

 private:
  const size_t most_;
  std::mutex mutex_;
  std::map<Key, Made> held_;
};

}  // namespace ajour
