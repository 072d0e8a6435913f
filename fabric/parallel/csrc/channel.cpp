#include "channel.h"

#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <ctime>
#include <new>
#include <stdexcept>
#include <system_error>

namespace shm {
namespace {

constexpr double kSlice = 0.1;
constexpr double kBeatPeriod = 0.05;
constexpr int kPausesPerLook = 16;

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec * 1e-9;
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// False if nobody woke us for the whole time.
bool futex_wait(std::atomic<uint32_t>& word, uint32_t seen, double timeout_s) {
  timespec timeout;
  timeout.tv_sec = static_cast<time_t>(timeout_s);
  timeout.tv_nsec = static_cast<long>((timeout_s - timeout.tv_sec) * 1e9);
  return syscall(SYS_futex, &word, FUTEX_WAIT, seen, &timeout, nullptr, 0) == 0 ||
         errno != ETIMEDOUT;
}

void futex_wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void publish(Word& word, uint32_t value) {
  // Sequentially consistent, as is the sleeper's side: one of the two sees the other.
  word.value.store(value);
  if (word.num_sleepers.load() > 0) futex_wake(word.value);
}

bool is_reached(uint32_t value, uint32_t step) { return static_cast<int32_t>(value - step) >= 0; }

}  // namespace

int create_segment(const Layout& layout, uint64_t nonce) {
  const int fd = memfd_create("fabric-group", MFD_CLOEXEC);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "memfd_create");
  void* memory = MAP_FAILED;
  if (ftruncate(fd, layout.bytes()) == 0) {
    memory = mmap(nullptr, sizeof(Header), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  if (memory == MAP_FAILED) {
    const int error = errno;
    close(fd);
    throw std::system_error(error, std::generic_category(), "sizing a group's shared memory");
  }
  // Everything else starts as the zeros of new memory.
  Header* header = static_cast<Header*>(memory);
  header->nonce = nonce;
  header->size = layout.size;
  header->slot_bytes = layout.slot_bytes;
  header->ring_bytes = layout.ring_bytes;
  header->magic = kMagic;
  munmap(memory, sizeof(Header));
  return fd;
}

// Looks after the peers while we sleep. Time is counted in our own slices of sleep, so that a
// pause of the whole machine makes nobody look frozen.
class Channel::Watch {
 public:
  explicit Watch(Channel& channel)
      : channel_(channel), beats_(channel.size(), 0), num_missed_(channel.size(), 0) {}

  uint32_t look() {
    for (int peer = 0; peer < channel_.size(); ++peer) {
      if (peer == channel_.rank_) continue;
      if (is_dead(peer)) return channel_.conclude(kDead, peer);
      const uint32_t beats = channel_.state(peer).beats.load(std::memory_order_relaxed);
      // A peer that is still to attach has no heart yet.
      num_missed_[peer] = beats > 0 && beats == beats_[peer] ? num_missed_[peer] + 1 : 0;
      beats_[peer] = beats;
      if (num_missed_[peer] * kSlice > channel_.patience_.silence_s) {
        return channel_.conclude(kFrozen, peer);
      }
    }
    return kFine;
  }

 private:
  bool is_dead(int peer) const {
    if (channel_.pidfds_.empty() || channel_.pidfds_[peer] < 0) return false;
    pollfd poll_of{channel_.pidfds_[peer], POLLIN, 0};
    return poll(&poll_of, 1, 0) > 0;
  }

  Channel& channel_;
  std::vector<uint32_t> beats_;
  std::vector<int> num_missed_;
};

Channel::Channel(int fd, uint64_t nonce, int rank, Patience patience)
    : layout_{}, rank_(rank), patience_(patience) {
  Header header;
  struct stat file;
  // The header is read before anything is trusted about the rest.
  if (fstat(fd, &file) != 0 || pread(fd, static_cast<void*>(&header), sizeof header, 0) !=
                                   static_cast<ssize_t>(sizeof header)) {
    throw std::invalid_argument("a group's shared memory can't be read");
  }
  layout_ = Layout{static_cast<int>(header.size), header.slot_bytes, header.ring_bytes};
  if (header.magic != kMagic || header.nonce != nonce || rank < 0 || rank >= layout_.size ||
      file.st_size != static_cast<off_t>(layout_.bytes())) {
    throw std::invalid_argument("this is not the shared memory of our group");
  }
  void* memory = mmap(nullptr, layout_.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  base_ = static_cast<char*>(memory);
  state(rank_).pid.store(getpid());
  heart_ = std::thread(&Channel::beat, this);
}

Channel::~Channel() {
  is_closing_.store(1);
  futex_wake(is_closing_);
  heart_.join();
  for (const int pidfd : pidfds_) {
    if (pidfd >= 0) close(pidfd);
  }
  munmap(base_, layout_.bytes());
}

void Channel::beat() {
  while (is_closing_.load() == 0) {
    state(rank_).beats.fetch_add(1, std::memory_order_relaxed);
    futex_wait(is_closing_, 0, kBeatPeriod);
  }
}

uint32_t Channel::attach(double timeout_s) {
  header().attached.value.fetch_add(1);
  futex_wake(header().attached.value);
  const uint32_t size = layout_.size;
  const double later_timeout_s = patience_.timeout_s;
  patience_.timeout_s = timeout_s;
  const uint32_t verdict =
      wait(header().attached, rank_, [size](uint32_t count) { return count >= size; });
  patience_.timeout_s = later_timeout_s;
  if (verdict != kFine) return verdict;
  // Where processes can't be watched (another pid namespace), the heartbeat still is.
  for (int peer = 0; peer < layout_.size; ++peer) {
    const bool is_other = peer != rank_;
    pidfds_.push_back(is_other ? syscall(SYS_pidfd_open, state(peer).pid.load(), 0) : -1);
  }
  return kFine;
}

template <class IsReady>
uint32_t Channel::wait(Word& word, int awaited, IsReady is_ready) {
  if (is_ready(word.value.load(std::memory_order_acquire))) return kFine;
  if (patience_.spin_s > 0) {
    const double end = now() + patience_.spin_s;
    do {
      for (int i = 0; i < kPausesPerLook; ++i) {
        pause();
        if (is_ready(word.value.load(std::memory_order_acquire))) return kFine;
      }
      // The rank that we wait for may have to run on this very processor.
      sched_yield();
    } while (now() < end);
  }
  return sleep(word, awaited, is_ready);
}

template <class IsReady>
uint32_t Channel::sleep(Word& word, int awaited, IsReady is_ready) {
  const double start = now();
  Watch watch(*this);
  for (;;) {
    word.num_sleepers.fetch_add(1);
    const uint32_t seen = word.value.load();
    // An abort between here and the sleep is noticed a slice later.
    const bool is_over = is_ready(seen) || verdict() != kFine;
    const bool is_woken = is_over || futex_wait(word.value, seen, kSlice);
    word.num_sleepers.fetch_sub(1);
    if (is_ready(word.value.load(std::memory_order_acquire))) return kFine;
    if (const uint32_t ended = verdict()) return ended;
    if (is_woken) continue;
    if (patience_.is_interrupted()) return conclude(kAborted, rank_);
    if (const uint32_t ended = watch.look()) return ended;
    if (patience_.timeout_s >= 0 && now() - start >= patience_.timeout_s) {
      return conclude(kTimeout, awaited);
    }
  }
}

uint32_t Channel::meet(uint64_t call) {
  const uint32_t step = ++step_;
  RankState& own = state(rank_);
  own.call[step & 1].store(call, std::memory_order_relaxed);
  publish(own.step, step);
  for (int peer = 0; peer < layout_.size; ++peer) {
    if (peer == rank_) continue;
    RankState& other = state(peer);
    const uint32_t verdict =
        wait(other.step, peer, [step](uint32_t value) { return is_reached(value, step); });
    if (verdict != kFine) return verdict;
    if (other.call[step & 1].load(std::memory_order_relaxed) != call) {
      return conclude(kMismatch, peer);
    }
  }
  return kFine;
}

uint32_t Channel::send(const char* data, size_t bytes, int to) {
  Ring& pipe = ring(rank_, to);
  char* target = ring_data(rank_, to);
  uint32_t written = pipe.written.value.load(std::memory_order_relaxed);
  const uint32_t capacity = layout_.ring_bytes;
  while (bytes > 0) {
    const uint32_t verdict =
        wait(pipe.read, to, [=](uint32_t read) { return written - read < capacity; });
    if (verdict != kFine) return verdict;
    const uint32_t free = capacity - (written - pipe.read.value.load(std::memory_order_acquire));
    const uint32_t offset = written & (capacity - 1);
    size_t n = free < capacity - offset ? free : capacity - offset;
    n = n < bytes ? n : bytes;
    std::memcpy(target + offset, data, n);
    written += n;
    publish(pipe.written, written);
    data += n;
    bytes -= n;
  }
  return kFine;
}

uint32_t Channel::receive(char* data, size_t bytes, int source) {
  Ring& pipe = ring(source, rank_);
  const char* from = ring_data(source, rank_);
  uint32_t read = pipe.read.value.load(std::memory_order_relaxed);
  const uint32_t capacity = layout_.ring_bytes;
  while (bytes > 0) {
    const uint32_t verdict = wait(pipe.written, source, [=](uint32_t w) { return w != read; });
    if (verdict != kFine) return verdict;
    const uint32_t used = pipe.written.value.load(std::memory_order_acquire) - read;
    const uint32_t offset = read & (capacity - 1);
    size_t n = used < capacity - offset ? used : capacity - offset;
    n = n < bytes ? n : bytes;
    std::memcpy(data, from + offset, n);
    read += n;
    publish(pipe.read, read);
    data += n;
    bytes -= n;
  }
  return kFine;
}

uint32_t Channel::conclude(Cause cause, int rank) {
  uint32_t before = kFine;
  header().verdict.compare_exchange_strong(before, verdict_of(cause, rank));
  wake_everybody();
  return verdict();
}

void Channel::wake_everybody() {
  futex_wake(header().attached.value);
  for (int i = 0; i < layout_.size; ++i) {
    futex_wake(state(i).step.value);
    for (int j = 0; j < layout_.size; ++j) {
      futex_wake(ring(i, j).written.value);
      futex_wake(ring(i, j).read.value);
    }
  }
}

}  // namespace shm
