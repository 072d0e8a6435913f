// One rank's end of the shared memory: waiting, and noticing that a peer is gone.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "segment.h"

namespace shm {

// Why a group ended; the rank that it is about is in the low 16 bits of a verdict.
enum Cause : uint32_t { kDead = 1, kFrozen = 2, kTimeout = 3, kAborted = 4, kMismatch = 5 };

constexpr uint32_t kFine = 0;

inline uint32_t verdict_of(Cause cause, int rank) {
  return static_cast<uint32_t>(cause) << 16 | static_cast<uint32_t>(rank);
}

struct Patience {
  double spin_s;     // before sleeping
  double silence_s;  // a peer that shows no sign of life for so long is frozen
  double timeout_s;  // of a whole wait; infinite if negative
  bool (*is_interrupted)();  // asked now and then; if so, the group is aborted
};

// New memory that only lives as long as somebody has it open or mapped: its file descriptor.
int create_segment(const Layout& layout, uint64_t nonce);

class Channel {
 public:
  // Maps the segment, and keeps no descriptor of it.
  Channel(int fd, uint64_t nonce, int rank, Patience patience);
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // Each operation returns kFine or the verdict that ended the group.
  // Waits for all ranks, for at most `timeout_s`.
  uint32_t attach(double timeout_s);
  // Returns when every rank has called it for the same `call`.
  uint32_t meet(uint64_t call);
  uint32_t send(const char* data, size_t bytes, int to);
  uint32_t receive(char* data, size_t bytes, int source);
  void abort() { conclude(kAborted, rank_); }

  uint32_t verdict() const { return header().verdict.load(std::memory_order_acquire); }
  int rank() const { return rank_; }
  int size() const { return layout_.size; }
  size_t slot_bytes() const { return layout_.slot_bytes; }
  char* slot(uint32_t turn, int rank) const {
    return base_ + layout_.slots() + ((turn & 1) * layout_.size + rank) * layout_.slot_bytes;
  }

 private:
  class Watch;

  Header& header() const { return *reinterpret_cast<Header*>(base_); }
  RankState& state(int rank) const {
    return reinterpret_cast<RankState*>(base_ + layout_.states())[rank];
  }
  Ring& ring(int source, int to) const {
    return reinterpret_cast<Ring*>(base_ + layout_.rings())[source * layout_.size + to];
  }
  char* ring_data(int source, int to) const {
    return base_ + layout_.ring_data() + (source * layout_.size + to) * layout_.ring_bytes;
  }

  template <class IsReady>
  uint32_t wait(Word& word, int awaited, IsReady is_ready);
  template <class IsReady>
  uint32_t sleep(Word& word, int awaited, IsReady is_ready);
  uint32_t conclude(Cause cause, int rank);
  void wake_everybody();
  void beat();

  Layout layout_;
  char* base_ = nullptr;
  int rank_;
  Patience patience_;
  uint32_t step_ = 0;
  std::vector<int> pidfds_;
  std::atomic<uint32_t> is_closing_{0};
  std::thread heart_;
};

}  // namespace shm
