// A small thread pool for fork-join loops. The caller is thread 0; the others spin briefly after a
// job, then sleep, so that an idle program costs nothing and a busy one pays well under a
// microsecond a join.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace tinyllama {

class ThreadPool {
 public:
  // n_threads >= 1, the caller included; 0 means one per available core.
  explicit ThreadPool(int n_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Runs job(thread) once on every thread, thread in [0, size()), and returns when all are done.
  // The first exception thrown by a job is rethrown here. Not reentrant; one caller at a time.
  void run(const std::function<void(int)>& job);

  // Splits [0, n) into one contiguous range per thread, boundaries at multiples of `grain`, and
  // calls body(begin, end) for each non-empty one. Runs inline when there is one range only.
  void for_ranges(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

  // Calls body(item) for every item in [0, n), n < 2^32. Each thread walks a contiguous part of its
  // own, front to back; one that is done takes items from the back of the others' parts, so that
  // uneven items, and cores that others slow down, balance. A worker whose core others take for
  // long is left out for a while.
  void for_each(int64_t n, const std::function<void(int64_t)>& body);
  // The same with the thread that runs the item, in [0, size()): body(item, thread).
  void for_each(int64_t n, const std::function<void(int64_t, int)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tinyllama
