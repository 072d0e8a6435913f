// Layout of the memory that the ranks of a group on one host share.
//
//   Header | RankState[size] | Ring[size * size] | slots[2][size][slot_bytes] | rings' bytes
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace shm {

constexpr uint64_t kMagic = 0x6661627269632d32;
constexpr size_t kLine = 64;

// A word that its owner changes and others may sleep on.
struct Word {
  std::atomic<uint32_t> value;
  std::atomic<uint32_t> num_sleepers;
};

struct alignas(kLine) Header {
  uint64_t magic;
  uint64_t nonce;
  uint32_t size;
  uint32_t slot_bytes;
  uint32_t ring_bytes;
  Word attached;
  // 0, or why and because of whom the group ended; never changes again.
  std::atomic<uint32_t> verdict;
};

struct alignas(kLine) RankState {
  Word step;
  // What the step belongs to, by the step's parity: a rank is at most one step ahead of another.
  std::atomic<uint64_t> call[2];
  alignas(kLine) std::atomic<uint32_t> beats;
  std::atomic<int32_t> pid;
};

// Bytes from one rank to another; both counts wrap.
struct alignas(kLine) Ring {
  Word written;
  alignas(kLine) Word read;
};

struct Layout {
  int size;
  size_t slot_bytes;
  size_t ring_bytes;

  size_t states() const { return sizeof(Header); }
  size_t rings() const { return states() + size * sizeof(RankState); }
  size_t slots() const { return rings() + size * size * sizeof(Ring); }
  size_t ring_data() const { return slots() + 2 * size * slot_bytes; }
  size_t bytes() const { return ring_data() + size * size * ring_bytes; }
};

}  // namespace shm
