// A team of threads that shares out ranges of independent indices.
//
// Unlike an OpenMP team, nobody waits for a thread that has not come: the caller works too, and a
// call ends when every claimed range is done. On processors that other processes use as well, a
// late thread then costs its share of the work and not a time slice for each call. Each thread goes
// through a share of neighbouring ranges, its memory being one stream, and then through what others
// have left, from the end. Idle threads look for work for some tens of microseconds, the gap between
// two operations, and then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

class ThreadPool {
 public:
  using Range = void (*)(const void* context, int64_t begin, int64_t end);

  // The caller of run is one of the threads.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Covers 0 to count with calls of range. A second caller at the same time works alone.
  void run(int64_t count, Range range, const void* context);

 private:
  // The parts of a thread that nobody has claimed.
  struct alignas(64) Share {
    // Generation (32 bits), next part (16), end (16): a thread that was late cannot claim from a
    // call that is over.
    std::atomic<uint64_t> parts{0};
  };

  void work(int thread);
  bool wait_for_work();
  bool has_work() const;
  bool run_own(int thread);
  bool run_other(int thread);
  void run_part(int64_t part);

  const int num_threads_;
  std::mutex caller_;
  // The current call; written by the caller while no part is claimed.
  Range range_ = nullptr;
  const void* context_ = nullptr;
  int64_t count_ = 0;
  int64_t num_parts_ = 0;
  uint64_t generation_ = 0;
  std::vector<Share> shares_;
  std::atomic<int64_t> num_done_{0};
  std::atomic<int> num_sleeping_{0};
  bool is_stopping_ = false;
  std::mutex sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};
