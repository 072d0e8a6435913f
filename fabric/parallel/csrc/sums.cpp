#include "sums.h"

#include <cstring>

// The loader picks the clone that suits the processor. None fuses or reorders the additions.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_ISA
#endif

namespace shm {
namespace {

// Few enough elements for the running sums to stay in the first-level cache.
constexpr int64_t kBlock = 2048;

FOR_EACH_ISA void add(const float* a, const float* b, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

// Unsigned: two's complement sums wrap, as torch's do.
FOR_EACH_ISA void add(const uint32_t* a, const uint32_t* b, int64_t count, uint32_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

FOR_EACH_ISA void add(const uint64_t* a, const uint64_t* b, int64_t count, uint64_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

FOR_EACH_ISA void widen(const uint16_t* bf16, int64_t count, uint32_t* bits) {
  for (int64_t i = 0; i < count; ++i) bits[i] = static_cast<uint32_t>(bf16[i]) << 16;
}

// To the nearest, ties to even; any NaN becomes the quiet one.
FOR_EACH_ISA void round_to_bf16(const uint32_t* bits, int64_t count, uint16_t* bf16) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t rounded = (bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16;
    bf16[i] = static_cast<uint16_t>((bits[i] & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
}

template <class T>
void sum_of(const void* const* sources, int num_sources, int64_t count, void* out) {
  T* total = static_cast<T*>(out);
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t n = count - start < kBlock ? count - start : kBlock;
    T block[kBlock];
    const T* running = static_cast<const T*>(sources[0]) + start;
    for (int i = 1; i < num_sources; ++i) {
      // Not into `out` before the last: it may be a source that is still to come.
      T* target = i + 1 == num_sources ? total + start : block;
      add(running, static_cast<const T*>(sources[i]) + start, n, target);
      running = block;
    }
    if (num_sources == 1 && running != total + start) {
      std::memcpy(total + start, running, n * sizeof(T));
    }
  }
}

void sum_bf16(const void* const* sources, int num_sources, int64_t count, void* out) {
  uint32_t total[kBlock];
  uint32_t next[kBlock];
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t n = count - start < kBlock ? count - start : kBlock;
    widen(static_cast<const uint16_t*>(sources[0]) + start, n, total);
    for (int i = 1; i < num_sources; ++i) {
      widen(static_cast<const uint16_t*>(sources[i]) + start, n, next);
      float* sums = reinterpret_cast<float*>(total);
      add(sums, reinterpret_cast<const float*>(next), n, sums);
    }
    round_to_bf16(total, n, static_cast<uint16_t*>(out) + start);
  }
}

}  // namespace

size_t element_bytes(Kind kind) {
  switch (kind) {
    case Kind::kBFloat16:
      return 2;
    case Kind::kInt64:
      return 8;
    default:
      return 4;
  }
}

void sum(Kind kind, const void* const* sources, int num_sources, int64_t count, void* out) {
  switch (kind) {
    case Kind::kFloat32:
      return sum_of<float>(sources, num_sources, count, out);
    case Kind::kBFloat16:
      return sum_bf16(sources, num_sources, count, out);
    case Kind::kInt32:
      return sum_of<uint32_t>(sources, num_sources, count, out);
    case Kind::kInt64:
      return sum_of<uint64_t>(sources, num_sources, count, out);
  }
}

}  // namespace shm
