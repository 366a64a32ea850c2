#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <numeric>
#include <span>
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
// A worker that keeps a join waiting this long has lost its core, for a scheduler's slice or more,
// and would again: for_each leaves it out for so long.
constexpr auto kLate = std::chrono::microseconds(400);
constexpr Clock::duration kShortestOut = std::chrono::milliseconds(10);
constexpr Clock::duration kLongestOut = std::chrono::milliseconds(160);

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

// A worker and the orders it gets: one more ticket is one job to do.
struct alignas(64) Worker {
  std::atomic<uint32_t> ticket{0}, finished{0};
  // A worker that was late is left out for a while, longer each time: the caller's to read and
  // write.
  Clock::time_point out_until{};
  Clock::duration out_for{};

  bool late() const {
    return finished.load(std::memory_order_acquire) != ticket.load(std::memory_order_relaxed);
  }
};

struct ThreadPool::State {
  std::vector<Worker> workers;  // of threads 1, 2, ...
  std::vector<std::thread> threads;
  std::vector<Part> parts;   // one per thread, for for_each
  std::vector<int> present;  // threads that take part in the for_each under way
  std::mutex mutex;
  std::condition_variable wake, finished;
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

  // Returns when there is a ticket more than `seen`.
  void wait_for_ticket(const Worker& worker, uint32_t seen) {
    if (spin_until([&] { return worker.ticket.load(std::memory_order_acquire) != seen; })) return;
    std::unique_lock lock(mutex);
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    wake.wait(lock, [&] { return worker.ticket.load(std::memory_order_seq_cst) != seen; });
    sleepers.fetch_sub(1, std::memory_order_relaxed);
  }

  void work(int thread) {
    Worker& worker = workers[static_cast<size_t>(thread - 1)];
    for (uint32_t seen = 0;;) {
      wait_for_ticket(worker, seen);
      seen++;
      if (stop.load(std::memory_order_relaxed)) return;
      guarded(thread);
      worker.finished.store(seen, std::memory_order_release);
      finish();
    }
  }

  void finish() {
    if (unfinished.fetch_sub(1, std::memory_order_seq_cst) != 1) return;
    if (!caller_sleeps.load(std::memory_order_seq_cst)) return;
    { const std::lock_guard lock(mutex); }
    finished.notify_one();
  }

  // Hands out the job to the workers of `which` threads (0 is the caller), does the caller's part,
  // and waits.
  void run_on(std::span<const int> which, const std::function<void(int)>& what) {
    job = &what;
    unfinished.store(static_cast<int>(std::count_if(which.begin(), which.end(),
                                                    [](int thread) { return thread != 0; })),
                     std::memory_order_relaxed);
    for (const int thread : which)
      if (thread != 0)
        workers[static_cast<size_t>(thread - 1)].ticket.fetch_add(1, std::memory_order_seq_cst);
    wake_sleepers();
    guarded(0);
    wait_for_workers();
    if (error) std::rethrow_exception(std::exchange(error, nullptr));
  }

  void wake_sleepers() {
    if (sleepers.load(std::memory_order_seq_cst) == 0) return;
    { const std::lock_guard lock(mutex); }  // a sleeper is either before its check or inside wait()
    wake.notify_all();
  }

  // A worker that is late has lost its core to somebody else; a caller that spins would keep its
  // own from it.
  void wait_for_workers() {
    const auto done = [&] { return unfinished.load(std::memory_order_seq_cst) == 0; };
    if (spin_until(done)) return;
    const Clock::time_point start = Clock::now();
    std::unique_lock lock(mutex);
    caller_sleeps.store(true, std::memory_order_seq_cst);
    if (!finished.wait_for(lock, kLate, done)) {
      for (Worker& worker : workers)
        if (worker.late()) leave_out(worker, start);
    }
    finished.wait(lock, done);
    caller_sleeps.store(false, std::memory_order_relaxed);
  }

  // Twice as long as the last time, unless that is long ago.
  static void leave_out(Worker& worker, Clock::time_point now) {
    const bool again = now < worker.out_until + worker.out_for;
    worker.out_for = again ? std::min(2 * worker.out_for, kLongestOut) : kShortestOut;
    worker.out_until = now + worker.out_for;
  }

  // The threads that may share work: the caller, and the workers that are not left out.
  void find_present() {
    present.assign(1, 0);
    const Clock::time_point now = Clock::now();
    for (size_t i = 0; i < workers.size(); i++)
      if (now >= workers[i].out_until) present.push_back(static_cast<int>(i) + 1);
  }
};

ThreadPool::ThreadPool(int n_threads) : state_(std::make_unique<State>()) {
  const int n = n_threads > 0 ? n_threads : available_cores();
  state_->parts = std::vector<Part>(static_cast<size_t>(n));
  state_->workers = std::vector<Worker>(static_cast<size_t>(n - 1));
  for (int thread = 1; thread < n; thread++)
    state_->threads.emplace_back([this, thread] { state_->work(thread); });
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_relaxed);
  for (Worker& worker : state_->workers) worker.ticket.fetch_add(1, std::memory_order_seq_cst);
  state_->wake_sleepers();
  for (std::thread& thread : state_->threads) thread.join();
}

int ThreadPool::size() const {
  return static_cast<int>(state_->threads.size()) + 1;
}

void ThreadPool::run(const std::function<void(int)>& job) {
  State& s = *state_;
  if (s.threads.empty()) return job(0);
  s.present.resize(static_cast<size_t>(size()));
  std::iota(s.present.begin(), s.present.end(), 0);
  s.run_on(s.present, job);
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
  for_each(n, [&](int64_t item, int) { body(item); });
}

void ThreadPool::for_each(int64_t n, const std::function<void(int64_t, int)>& body) {
  if (n <= 1 || size() == 1) {
    for (int64_t item = 0; item < n; item++) body(item, 0);
    return;
  }
  TL_CHECK(n < int64_t{1} << 32);
  State& s = *state_;
  s.find_present();
  const auto n_parts = static_cast<int64_t>(s.present.size());
  for (int64_t i = 0; i < n_parts; i++) {
    s.parts[static_cast<size_t>(s.present[static_cast<size_t>(i)])].set(
        static_cast<uint64_t>(n * i / n_parts), static_cast<uint64_t>(n * (i + 1) / n_parts));
  }
  s.run_on(s.present, [&](int thread) {
    Part& own = s.parts[static_cast<size_t>(thread)];
    for (int64_t item; (item = own.take(true)) >= 0;) body(item, thread);
    for (const int other : s.present)
      for (int64_t item; (item = s.parts[static_cast<size_t>(other)].take(false)) >= 0;)
        body(item, thread);
  });
}

}  // namespace tinyllama
