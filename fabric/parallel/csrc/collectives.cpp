#include "collectives.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace shm {
namespace {

enum Operation : uint64_t {
  kAllReduce = 1,
  kReduceScatter,
  kAllGather,
  kAllToAll,
  kBroadcast,
  kBarrier
};

// What the ranks must agree on.
uint64_t call_of(Operation operation, int64_t size, int detail = 0) {
  return static_cast<uint64_t>(operation) << 56 | static_cast<uint64_t>(detail) << 48 |
         (static_cast<uint64_t>(size) & 0xffffffffffff);
}

// Elements of a slot that one rank sums, a multiple of a cache line of any kind.
constexpr int64_t kGrain = 64;

int64_t max_share(size_t slot_bytes, int size, int64_t unit) {
  return static_cast<int64_t>(slot_bytes) / size / unit / kGrain * kGrain;
}

// How a piece of an all-reduce is shared: rank r sums `length(r)` elements from `start(r)`.
struct Cut {
  int64_t count;
  int64_t share;

  Cut(int64_t count, int size)
      : count(count), share(((count + size - 1) / size + kGrain - 1) / kGrain * kGrain) {}
  int64_t start(int rank) const { return std::min(count, share * rank); }
  int64_t length(int rank) const { return start(rank + 1) - start(rank); }
};

}  // namespace

uint32_t Collectives::all_reduce(Kind kind, char* x, int64_t count) {
  const uint64_t call = call_of(kAllReduce, count, static_cast<int>(kind));
  if (count * element_bytes(kind) <= one_phase_bytes_) return reduce_at_once(kind, x, count, call);
  return reduce_in_pieces(kind, x, count, call);
}

uint32_t Collectives::reduce_at_once(Kind kind, char* x, int64_t count, uint64_t call) {
  const uint32_t turn = turn_++;
  std::memcpy(channel_.slot(turn, channel_.rank()), x, count * element_bytes(kind));
  if (const uint32_t verdict = channel_.meet(call)) return verdict;
  std::vector<const void*> sources;
  for (int rank = 0; rank < channel_.size(); ++rank) {
    sources.push_back(rank == channel_.rank() ? x : channel_.slot(turn, rank));
  }
  sum(kind, sources.data(), channel_.size(), count, x);
  return kFine;
}

// Between two meetings a rank sums its share of one piece, takes the other ranks' sums of the
// piece before, and lays out the piece after. The last two use the same slots, but not the same
// bytes: a rank's share has its own place in all slots, whatever the piece's size.
uint32_t Collectives::reduce_in_pieces(Kind kind, char* x, int64_t count, uint64_t call) {
  const int size = channel_.size();
  const int me = channel_.rank();
  const int64_t unit = element_bytes(kind);
  const int64_t place = max_share(channel_.slot_bytes(), size, unit);
  const int64_t max_count = place * size;
  const int64_t num_pieces = (count + max_count - 1) / max_count;
  const uint32_t first = turn_;
  turn_ += num_pieces;
  std::vector<const void*> sources(size);

  const auto cut = [&](int64_t piece) {
    return Cut(std::min(max_count, count - piece * max_count), size);
  };
  // Where an owner keeps a sharer's elements: in its tensor, and in its slot.
  const auto own = [&](int64_t piece, int sharer) {
    return x + (piece * max_count + cut(piece).start(sharer)) * unit;
  };
  const auto shared = [&](int64_t piece, int owner, int sharer) {
    return channel_.slot(first + piece, owner) + place * sharer * unit;
  };
  const auto lay_out = [&](int64_t piece) {
    for (int sharer = 0; sharer < size; ++sharer) {
      if (sharer == me) continue;
      std::memcpy(shared(piece, me, sharer), own(piece, sharer), cut(piece).length(sharer) * unit);
    }
  };
  const auto sum_share = [&](int64_t piece) {
    const int64_t length = cut(piece).length(me);
    for (int owner = 0; owner < size; ++owner) {
      sources[owner] = owner == me ? own(piece, me) : shared(piece, owner, me);
    }
    sum(kind, sources.data(), size, length, shared(piece, me, me));
    std::memcpy(own(piece, me), shared(piece, me, me), length * unit);
  };
  const auto take_sums = [&](int64_t piece) {
    for (int sharer = 0; sharer < size; ++sharer) {
      if (sharer == me) continue;
      const int64_t bytes = cut(piece).length(sharer) * unit;
      std::memcpy(own(piece, sharer), shared(piece, sharer, sharer), bytes);
    }
  };

  lay_out(0);
  for (int64_t piece = 0; piece <= num_pieces; ++piece) {
    if (const uint32_t verdict = channel_.meet(call)) return verdict;
    if (piece < num_pieces) sum_share(piece);
    if (piece > 0) take_sums(piece - 1);
    if (piece + 1 < num_pieces) lay_out(piece + 1);
  }
  return kFine;
}

uint32_t Collectives::reduce_scatter(Kind kind, const char* x, int64_t count, char* out) {
  const int size = channel_.size();
  const int me = channel_.rank();
  const int64_t unit = element_bytes(kind);
  const int64_t max_count = channel_.slot_bytes() / size / unit;
  const uint64_t call = call_of(kReduceScatter, count, static_cast<int>(kind));
  std::vector<const void*> sources(size);
  for (int64_t start = 0; start < count; start += max_count) {
    const int64_t n = std::min(max_count, count - start);
    const uint32_t turn = turn_++;
    for (int rank = 0; rank < size; ++rank) {
      if (rank == me) continue;
      std::memcpy(channel_.slot(turn, me) + rank * n * unit, x + (rank * count + start) * unit,
                  n * unit);
    }
    if (const uint32_t verdict = channel_.meet(call)) return verdict;
    for (int rank = 0; rank < size; ++rank) {
      sources[rank] = rank == me ? x + (me * count + start) * unit
                                 : channel_.slot(turn, rank) + me * n * unit;
    }
    sum(kind, sources.data(), size, n, out + start * unit);
  }
  return kFine;
}

uint32_t Collectives::all_gather(const char* x, int64_t bytes, char* out) {
  const int64_t max_bytes = channel_.slot_bytes();
  const uint64_t call = call_of(kAllGather, bytes);
  for (int64_t start = 0; start < bytes; start += max_bytes) {
    const int64_t n = std::min(max_bytes, bytes - start);
    const uint32_t turn = turn_++;
    std::memcpy(channel_.slot(turn, channel_.rank()), x + start, n);
    if (const uint32_t verdict = channel_.meet(call)) return verdict;
    for (int rank = 0; rank < channel_.size(); ++rank) {
      const char* source = rank == channel_.rank() ? x + start : channel_.slot(turn, rank);
      std::memcpy(out + rank * bytes + start, source, n);
    }
  }
  return kFine;
}

uint32_t Collectives::all_to_all(const char* x, int64_t bytes, char* out) {
  const int size = channel_.size();
  const int me = channel_.rank();
  const int64_t max_bytes = channel_.slot_bytes() / size;
  const uint64_t call = call_of(kAllToAll, bytes);
  for (int64_t start = 0; start < bytes; start += max_bytes) {
    const int64_t n = std::min(max_bytes, bytes - start);
    const uint32_t turn = turn_++;
    for (int rank = 0; rank < size; ++rank) {
      if (rank == me) continue;
      std::memcpy(channel_.slot(turn, me) + rank * n, x + rank * bytes + start, n);
    }
    if (const uint32_t verdict = channel_.meet(call)) return verdict;
    for (int rank = 0; rank < size; ++rank) {
      const char* source =
          rank == me ? x + me * bytes + start : channel_.slot(turn, rank) + me * n;
      std::memcpy(out + rank * bytes + start, source, n);
    }
  }
  return kFine;
}

uint32_t Collectives::broadcast(char* x, int64_t bytes, int root) {
  const int64_t max_bytes = channel_.slot_bytes();
  const uint64_t call = call_of(kBroadcast, bytes, root);
  for (int64_t start = 0; start < bytes; start += max_bytes) {
    const int64_t n = std::min(max_bytes, bytes - start);
    const uint32_t turn = turn_++;
    if (channel_.rank() == root) std::memcpy(channel_.slot(turn, root), x + start, n);
    if (const uint32_t verdict = channel_.meet(call)) return verdict;
    if (channel_.rank() != root) std::memcpy(x + start, channel_.slot(turn, root), n);
  }
  return kFine;
}

uint32_t Collectives::barrier() { return channel_.meet(call_of(kBarrier, 0)); }

}  // namespace shm
