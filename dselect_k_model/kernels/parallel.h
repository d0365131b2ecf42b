// Work on several threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

// Calls work(i) for i in 0 ... number - 1 on several threads, or fewer where the system gives no more. What one of them
// throws, this throws.
inline void parallel(int number, int threads, const std::function<void(int)>& work) {
  std::atomic<int> next{0};
  std::exception_ptr thrown;
  std::mutex mutex;
  auto take = [&] {
    try {
      for (int i; (i = next++) < number;) work(i);
    } catch (...) {
      std::lock_guard<std::mutex> guard(mutex);
      thrown = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(threads);
  try {
    while (int(others.size()) + 1 < std::min(threads, number)) others.emplace_back(take);
  } catch (const std::exception&) {
  }
  take();
  for (auto& other : others) other.join();
  if (thrown) std::rethrow_exception(thrown);
}
