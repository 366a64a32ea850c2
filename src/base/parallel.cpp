#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/cpu_info.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tinyllama {
namespace {

constexpr int kSpins =
    20000;  // about 50 microseconds, the longest gap between two jobs of one step

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint32_t> generation{0};  // counts jobs; a worker waits for it to change
  std::atomic<int> unfinished{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  const std::function<void(int)>* job = nullptr;
  std::exception_ptr error;  // guarded by mutex

  void guarded(int thread) {
    try {
      (*job)(thread);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }

  // Returns when generation differs from `seen`.
  void wait_for_job(uint32_t seen) {
    for (int spin = 0; spin < kSpins; spin++) {
      if (generation.load(std::memory_order_acquire) != seen) return;
      relax();
    }
    std::unique_lock lock(mutex);
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    wake.wait(lock, [&] { return generation.load(std::memory_order_seq_cst) != seen; });
    sleepers.fetch_sub(1, std::memory_order_relaxed);
  }

  void work(int thread) {
    for (uint32_t seen = 0;;) {
      wait_for_job(seen);
      seen++;
      if (stop.load(std::memory_order_relaxed)) return;
      guarded(thread);
      unfinished.fetch_sub(1, std::memory_order_release);
    }
  }

  void announce() {
    generation.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) > 0) {
      {
        const std::lock_guard lock(mutex);
      }  // a sleeper is either before its check or inside wait()
      wake.notify_all();
    }
  }
};

ThreadPool::ThreadPool(int n_threads) : state_(std::make_unique<State>()) {
  const int n = n_threads > 0 ? n_threads : available_cores();
  for (int thread = 1; thread < n; thread++)
    state_->threads.emplace_back([this, thread] { state_->work(thread); });
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_relaxed);
  state_->announce();
  for (std::thread& thread : state_->threads) thread.join();
}

int ThreadPool::size() const {
  return static_cast<int>(state_->threads.size()) + 1;
}

void ThreadPool::run(const std::function<void(int)>& job) {
  State& s = *state_;
  if (s.threads.empty()) return job(0);
  s.job = &job;
  s.unfinished.store(static_cast<int>(s.threads.size()), std::memory_order_relaxed);
  s.announce();
  s.guarded(0);
  for (int spin = 0; s.unfinished.load(std::memory_order_acquire) != 0; spin++) {
    if (spin < kSpins) {
      relax();
    } else {
      std::this_thread::yield();  // a core was taken from us; let the late worker have this one
    }
  }
  if (s.error) std::rethrow_exception(std::exchange(s.error, nullptr));
}

void ThreadPool::for_ranges(int64_t n, int64_t grain,
                            const std::function<void(int64_t, int64_t)>& body) {
  const int64_t units = (n + grain - 1) / grain;
  const int64_t parts = std::min<int64_t>(size(), units);
  if (parts <= 1) {
    if (n > 0) body(0, n);
    return;
  }
  run([&](int thread) {
    if (thread >= parts) return;
    const int64_t begin = units * thread / parts * grain;
    const int64_t end = std::min(n, units * (thread + 1) / parts * grain);
    if (begin < end) body(begin, end);
  });
}

void ThreadPool::for_each(int64_t n, const std::function<void(int64_t)>& body) {
  if (n <= 1 || size() == 1) {
    for (int64_t item = 0; item < n; item++) body(item);
    return;
  }
  std::atomic<int64_t> next{0};
  run([&](int) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < n;) body(item);
  });
}

}  // namespace tinyllama
