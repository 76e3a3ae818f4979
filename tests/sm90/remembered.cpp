// Prints what csrc/memory/remembered.h made, and how often.
#include "memory/remembered.h"

#include <cstdio>
#include <string>
#include <thread>
#include <vector>

int main() {
  int made = 0;
  ajour::Remembered<std::pair<int, int>, std::string> two(2);
  const auto of = [&](int a, int b) {
    return two.of({a, b}, [&] {
      ++made;
      return std::to_string(a) + "x" + std::to_string(b);
    });
  };
  for (const auto& [a, b] : std::vector<std::pair<int, int>>{{1, 2}, {2, 1}, {1, 2}, {2, 1}, {3, 3}, {3, 3}, {1, 2}}) {
    const std::string found = of(a, b);
    std::printf("%s %d\n", found.c_str(), made);  // the third forgets the two before it
  }

  int calls = 0;
  ajour::Remembered<int, int> shared(100);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int key = 0; key < 50; ++key) {
        if (shared.of(key, [&] { return ++calls, 7 * key; }) != 7 * key) std::printf("wrong ");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%d\n", calls);
}
