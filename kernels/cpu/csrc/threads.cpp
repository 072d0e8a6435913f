#include "threads.h"

#include "kernels.h"

namespace {

constexpr int kSpins = 2000;
constexpr int kPartsPerThread = 8;
constexpr int64_t kMaxParts = 0xffff;

uint64_t next_part(uint64_t claims) { return claims & 0xffff; }
uint64_t num_parts(uint64_t claims) { return claims >> 16 & 0xffff; }

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back(&ThreadPool::work, this);
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
  int64_t parts = num_threads_ * kPartsPerThread;
  parts = parts < count ? parts : count;
  parts = parts < kMaxParts ? parts : kMaxParts;
  num_done_.store(0, std::memory_order_relaxed);
  const uint64_t generation = (claims_.load(std::memory_order_relaxed) >> 32) + 1;
  claims_.store(generation << 32 | static_cast<uint64_t>(parts) << 16);
  if (num_sleeping_.load() > 0) {
    { std::lock_guard<std::mutex> wait_until_asleep(sleep_); }
    wake_.notify_all();
  }
  while (run_one()) {
  }
  for (int spins = 0; num_done_.load(std::memory_order_acquire) < parts; ++spins) {
    spins < kSpins ? pause() : std::this_thread::yield();
  }
}

bool ThreadPool::has_work() const {
  uint64_t claims = claims_.load();
  return next_part(claims) < num_parts(claims);
}

// Claims and runs one part; false if none is left.
bool ThreadPool::run_one() {
  uint64_t claims = claims_.load();
  do {
    if (next_part(claims) >= num_parts(claims)) return false;
  } while (!claims_.compare_exchange_weak(claims, claims + 1));
  int64_t part = next_part(claims), parts = num_parts(claims);
  range_(context_, count_ * part / parts, count_ * (part + 1) / parts);
  num_done_.fetch_add(1, std::memory_order_release);
  return true;
}

void ThreadPool::work() {
  do {
    while (run_one()) {
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
