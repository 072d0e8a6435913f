#include "threads.h"

#include <algorithm>

#include "kernels.h"

namespace {

constexpr int kSpins = 2000;
constexpr int kPartsPerThread = 8;

uint64_t share_of(uint64_t generation, int64_t next, int64_t end) {
  return generation << 32 | static_cast<uint64_t>(next) << 16 | static_cast<uint64_t>(end);
}
int64_t next_of(uint64_t share) { return share >> 16 & 0xffff; }
int64_t end_of(uint64_t share) { return share & 0xffff; }

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads), shares_(num_threads) {
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back(&ThreadPool::work, this, i);
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(sleep_);
    is_stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(int64_t count, Range range, const void* context) {
  std::unique_lock<std::mutex> lock(caller_, std::try_to_lock);
  if (!lock.owns_lock() || num_threads_ == 1 || count < 2) return range(context, 0, count);
  range_ = range;
  context_ = context;
  count_ = count;
  num_parts_ = std::min(count, int64_t{num_threads_} * kPartsPerThread);
  num_done_.store(0, std::memory_order_relaxed);
  ++generation_;
  for (int i = 0; i < num_threads_; ++i) {
    shares_[i].parts.store(share_of(generation_, num_parts_ * i / num_threads_,
                                    num_parts_ * (i + 1) / num_threads_));
  }
  if (num_sleeping_.load() > 0) {
    { std::lock_guard<std::mutex> wait_until_asleep(sleep_); }
    wake_.notify_all();
  }
  while (run_own(0) || run_other(0)) {
  }
  for (int spins = 0; num_done_.load(std::memory_order_acquire) < num_parts_; ++spins) {
    spins < kSpins ? pause() : std::this_thread::yield();
  }
}

bool ThreadPool::has_work() const {
  for (const Share& share : shares_) {
    uint64_t parts = share.parts.load();
    if (next_of(parts) < end_of(parts)) return true;
  }
  return false;
}

// Claims and runs the first part of a thread's share; false if none is left.
bool ThreadPool::run_own(int thread) {
  std::atomic<uint64_t>& share = shares_[thread].parts;
  uint64_t parts = share.load();
  do {
    if (next_of(parts) >= end_of(parts)) return false;
  } while (!share.compare_exchange_weak(parts, parts + (1 << 16)));
  run_part(next_of(parts));
  return true;
}

// Claims and runs the last part of another thread's share; false if none is left.
bool ThreadPool::run_other(int thread) {
  for (int i = 1; i < num_threads_; ++i) {
    std::atomic<uint64_t>& share = shares_[(thread + i) % num_threads_].parts;
    uint64_t parts = share.load();
    while (next_of(parts) < end_of(parts)) {
      if (share.compare_exchange_weak(parts, parts - 1)) {
        run_part(end_of(parts) - 1);
        return true;
      }
    }
  }
  return false;
}

void ThreadPool::run_part(int64_t part) {
  range_(context_, count_ * part / num_parts_, count_ * (part + 1) / num_parts_);
  num_done_.fetch_add(1, std::memory_order_release);
}

void ThreadPool::work(int thread) {
  do {
    while (run_own(thread) || run_other(thread)) {
    }
  } while (wait_for_work());
}

bool ThreadPool::wait_for_work() {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (has_work()) return true;
    pause();
  }
  std::unique_lock<std::mutex> lock(sleep_);
  num_sleeping_.fetch_add(1);
  wake_.wait(lock, [this] { return is_stopping_ || has_work(); });
  num_sleeping_.fetch_sub(1);
  return !is_stopping_;
}

void run_ranges(ThreadPool* pool, int64_t count, Range range, const void* context) {
  if (pool == nullptr) return range(context, 0, count);
  pool->run(count, range, context);
}
