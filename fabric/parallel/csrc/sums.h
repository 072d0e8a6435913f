// Element-wise sums over ranks, in the order of the ranks whatever the sizes or the processor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shm {

enum class Kind : int { kFloat32 = 0, kBFloat16 = 1, kInt32 = 2, kInt64 = 3 };

size_t element_bytes(Kind kind);

// out = sources[0] + sources[1] + ...; bf16 is summed in fp32 and rounded once. `out` may be one
// of the sources.
void sum(Kind kind, const void* const* sources, int num_sources, int64_t count, void* out);

}  // namespace shm
