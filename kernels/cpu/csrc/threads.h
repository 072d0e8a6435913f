// A team of threads that shares out ranges of independent indices.
//
// Unlike an OpenMP team, nobody waits for a thread that has not come: the caller works too, and a
// call ends when every claimed range is done. On processors that other processes use as well, a
// late thread then costs its share of the work and not a time slice for each call. Idle threads
// look for work for some tens of microseconds, the gap between two operations, and then sleep.
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
  void work();
  bool wait_for_work();
  bool has_work() const;
  bool run_one();

  const int num_threads_;
  std::mutex caller_;
  // The current call; written by the caller while no part is claimed.
  Range range_ = nullptr;
  const void* context_ = nullptr;
  int64_t count_ = 0;
  // Generation (32 bits), number of parts (16), next part to claim (16): a thread that was late
  // cannot claim from a call that is over.
  std::atomic<uint64_t> claims_{0};
  std::atomic<int64_t> num_done_{0};
  std::atomic<int> num_sleeping_{0};
  bool is_stopping_ = false;
  std::mutex sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};
