// Operations on a single row, for the kernels that do them alone and for those that fuse them.
#pragma once

#include "simd.h"

namespace KERNEL_ISA {

template <class T>
inline void norm_row(const T* x, const T* weight, T* out, int64_t size, float eps) {
  VecF squares = {};
  for (int64_t i = 0; i < size; i += kLanes) {
    VecF v = load(x + i, size - i);
    squares = multiply_add(v, v, squares);
  }
  float scale = 1.0f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(size) + eps);
  for (int64_t i = 0; i < size; i += kLanes) {
    VecF v = load(x + i, size - i) * scale * load(weight + i, size - i);
    store(out + i, v, size - i);
  }
}

// Adds x to sum in place.
template <class T>
inline void add_row(const T* x, T* sum, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) {
    store(sum + i, load(x + i, size - i) + load(sum + i, size - i), size - i);
  }
}

// Rotates the pairs (i, i + half).
template <class T>
inline void rotate_head(const T* x, T* out, const float* cosines, const float* sines,
                        int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    int64_t n = half - i;
    VecF first = load(x + i, n), second = load(x + half + i, n);
    VecF c = load(cosines + i, n), s = load(sines + i, n);
    store(out + i, first * c - second * s, n);
    store(out + half + i, second * c + first * s, n);
  }
}

template <class T>
inline void activate_row(const T* gate, const T* up, T* out, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) {
    int64_t n = size - i;
    VecF g = load(gate + i, n);
    store(out + i, g / (exp(-g) + 1.0f) * load(up + i, n), n);
  }
}

}  // namespace KERNEL_ISA
