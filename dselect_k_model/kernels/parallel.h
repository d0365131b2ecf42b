// Work on several threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>
#ifndef _WIN32
#include <pthread.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// While one exists, its thread treats denormal numbers as 0. They slow x86 processors down many times, and the moments
// of experts that are never used become denormal.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // of results, and of what is read
  ~FlushDenormals() { _mm_setcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;

 private:
  const unsigned before_;
#endif
};

// Threads that help the calling one. They wait between calls, because waking a thread is faster than starting one. They
// keep the affinity of the thread that started them.
class Helpers {
 public:
  // Calls take() in this thread and in up to `number` helpers, or in this one alone while another thread has them. A
  // helper that has not begun when this thread ends is left out. take() must not come back here.
  void run(int number, const std::function<void()>& take) {
    std::unique_lock<std::mutex> mine(in_use_, std::try_to_lock);
    if (!mine.owns_lock()) return take();
    {
      std::lock_guard<std::mutex> guard(mutex_);
      while (started_ < number && start()) started_++;
      take_ = &take, wanted_ = std::min(number, started_), at_work_ = 0;
    }
    wake_.notify_all();
    take();
    std::unique_lock<std::mutex> guard(mutex_);
    wanted_ = 0;
    done_.wait(guard, [&] { return !at_work_; });
  }

 private:
  bool start() {  // false: the system gives no more
    try {
      std::thread([this] { help(); }).detach();
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }
  void help() {
    std::unique_lock<std::mutex> guard(mutex_);
    for (;;) {
      wake_.wait(guard, [&] { return wanted_ > 0; });
      wanted_--, at_work_++;
      guard.unlock();
      (*take_)();
      guard.lock();
      if (!--at_work_) done_.notify_one();
    }
  }
  std::mutex in_use_, mutex_;
  std::condition_variable wake_, done_;
  const std::function<void()>* take_ = nullptr;
  int started_ = 0, wanted_ = 0, at_work_ = 0;
};

// The process's helpers. They are never freed, because their threads still wait when the process ends. A forked process
// gets new ones, because a fork copies no other threads.
inline Helpers*& helpers() {
  static Helpers* found = [] {
#ifndef _WIN32
    pthread_atfork(nullptr, nullptr, [] { helpers() = new Helpers; });
#endif
    return new Helpers;
  }();
  return found;
}

// Calls work(i) for i in 0 ... number - 1 on several threads, without denormal numbers. What one of them throws, this
// throws.
inline void parallel(int number, int threads, const std::function<void(int)>& work) {
  std::atomic<int> next{0};
  std::exception_ptr thrown;
  std::mutex mutex;
  auto take = [&] {
    [[maybe_unused]] const FlushDenormals flush;
    try {
      for (int i; (i = next++) < number;) work(i);
    } catch (...) {
      std::lock_guard<std::mutex> guard(mutex);
      thrown = std::current_exception();
    }
  };
  const int others = std::min(threads, number) - 1;
  if (others > 0)
    helpers()->run(others, take);
  else
    take();
  if (thrown) std::rethrow_exception(thrown);
}

inline void in_parallel(const std::vector<std::function<void()>>& parts, int threads) {
  parallel(parts.size(), threads, [&](int i) { parts[i](); });
}
