// Which instruction set computes, and on which threads.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "kernels.h"
#include "threads.h"

// Sharing work out costs as much as this many multiply-adds, or moved elements, on one.
constexpr int64_t kMinMultiplies = 1 << 17;
constexpr int64_t kMinElements = 1 << 14;

struct Team {
  const Table& table;
  ThreadPool* pool;
  int num_threads;

  // The pool, or null if the work is too small to be shared.
  ThreadPool* threads(int64_t work, int64_t least) const {
    return work < 2 * least ? nullptr : pool;
  }
};

struct FreeBytes {
  void operator()(void* data) const { std::free(data); }
};

using Buffer = std::unique_ptr<void, FreeBytes>;

// Bytes at a cache line's start; they are not written.
inline Buffer allocate(int64_t num_bytes) {
  void* data = std::aligned_alloc(64, ceil_div(num_bytes + 1, 64) * 64);
  if (data == nullptr) throw std::bad_alloc();
  return Buffer(data);
}
