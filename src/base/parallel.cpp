#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/cpu_info.h"
#include "base/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tinyllama {
namespace {

using Clock = std::chrono::steady_clock;

// The longest gap between two jobs of one step; a processor's pause takes 10 to 150 cycles, so time
// is asked.
constexpr auto kSpinTime = std::chrono::microseconds(100);
constexpr int kPausesPerLook = 32;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `done` came true while spinning for kSpinTime.
template <class Done>
bool spin_until(const Done& done) {
  Clock::time_point end = {};
  for (int pause = 0;; pause++) {
    if (done()) return true;
    relax();
    if (pause % kPausesPerLook != 0) continue;
    const Clock::time_point now = Clock::now();
    if (pause == 0) end = now + kSpinTime;
    if (now >= end) return false;
  }
}

// The items of one thread that nobody has taken yet: [begin, end), both in one word so that the
// owner can take from the front and the others from the back.
struct alignas(64) Part {
  std::atomic<uint64_t> bounds{0};

  void set(uint64_t begin, uint64_t end) {
    bounds.store(begin << 32 | end, std::memory_order_relaxed);
  }
  int64_t take(bool from_front) {
    uint64_t now = bounds.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t begin = now >> 32, end = now & 0xffffffffu;
      if (begin >= end) return -1;
      const uint64_t next = from_front ? (begin + 1) << 32 | end : begin << 32 | (end - 1);
      if (bounds.compare_exchange_weak(now, next, std::memory_order_relaxed))
        return static_cast<int64_t>(from_front ? begin : end - 1);
    }
  }
};

}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> threads;
  std::vector<Part> parts;  // one per thread, for for_each
  std::mutex mutex;
  std::condition_variable wake, finished;
  std::atomic<uint32_t> generation{0};  // counts jobs; a worker waits for it to change
  std::atomic<int> unfinished{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> caller_sleeps{false};
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
    if (spin_until([&] { return generation.load(std::memory_order_acquire) != seen; })) return;
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
      finish();
    }
  }

  void finish() {
    if (unfinished.fetch_sub(1, std::memory_order_seq_cst) != 1) return;
    if (!caller_sleeps.load(std::memory_order_seq_cst)) return;
    { const std::lock_guard lock(mutex); }
    finished.notify_one();
  }

  // A worker that is late has lost its core to somebody else; a caller that spins would keep its
  // own from it.
  void wait_for_workers() {
    const auto done = [&] { return unfinished.load(std::memory_order_seq_cst) == 0; };
    if (spin_until(done)) return;
    std::unique_lock lock(mutex);
    caller_sleeps.store(true, std::memory_order_seq_cst);
    finished.wait(lock, done);
    caller_sleeps.store(false, std::memory_order_relaxed);
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
  state_->parts = std::vector<Part>(static_cast<size_t>(n));
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
  s.wait_for_workers();
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
  const int64_t n_parts = size();
  TL_CHECK(n < int64_t{1} << 32);
  std::vector<Part>& parts = state_->parts;
  for (int64_t i = 0; i < n_parts; i++) {
    parts[static_cast<size_t>(i)].set(static_cast<uint64_t>(n * i / n_parts),
                                      static_cast<uint64_t>(n * (i + 1) / n_parts));
  }
  run([&](int thread) {
    for (int64_t i = 0; i < n_parts; i++) {
      Part& part = parts[static_cast<size_t>((thread + i) % n_parts)];
      for (int64_t item; (item = part.take(i == 0)) >= 0;) body(item);
    }
  });
}

}  // namespace tinyllama
