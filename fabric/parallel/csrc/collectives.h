// Collectives over a Channel. Each rank has a slot of either parity; pieces take turns, so that
// what one piece leaves in a slot is read before the piece after the next overwrites it.
#pragma once

#include <cstdint>

#include "channel.h"
#include "sums.h"

namespace shm {

class Collectives {
 public:
  Collectives(Channel& channel, size_t one_phase_bytes)
      : channel_(channel), one_phase_bytes_(one_phase_bytes) {}

  // Sizes in elements or bytes of what one rank contributes (all_reduce, all_gather, broadcast)
  // or of what goes to each rank (reduce_scatter, all_to_all). All return a verdict.
  uint32_t all_reduce(Kind kind, char* x, int64_t count);
  uint32_t reduce_scatter(Kind kind, const char* x, int64_t count, char* out);
  uint32_t all_gather(const char* x, int64_t bytes, char* out);
  uint32_t all_to_all(const char* x, int64_t bytes, char* out);
  uint32_t broadcast(char* x, int64_t bytes, int root);
  uint32_t barrier();

 private:
  uint32_t reduce_at_once(Kind kind, char* x, int64_t count, uint64_t call);
  uint32_t reduce_in_pieces(Kind kind, char* x, int64_t count, uint64_t call);

  Channel& channel_;
  size_t one_phase_bytes_;
  uint32_t turn_ = 0;
};

}  // namespace shm
