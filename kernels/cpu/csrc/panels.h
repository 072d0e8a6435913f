// What products of packed weights share: panels of columns, and rows that are normed on the way.
//
// A panel is [steps][kPanel][kStep], a step being 4 bytes of each column.
#pragma once

#include "rows.h"
#include "tiles.h"

namespace KERNEL_ISA {

constexpr int kPanel = 2 * kLanes;

// The depth of a panel, in elements: whole steps, and whole tiles where there are some.
template <class T>
constexpr int64_t depth_of(int64_t columns) {
  constexpr int64_t kUnit = HAS_TILES && sizeof(T) == 2 ? 32 : kStep<T>;
  return ceil_div(columns, kUnit) * kUnit;
}

// Some of the rows as they are multiplied: summed up, then normed into a buffer, if that is asked
// for; else as they are.
template <class T>
inline Matrix normed_rows(const LinearArgs& a, int64_t first, int64_t count, T* normed,
                          int64_t stride) {
  const int64_t size = a.x.columns;
  T* x = static_cast<T*>(a.x.data) + first * a.x.stride;
  if (a.norm == nullptr) return {x, count, size, a.x.stride};
  for (int64_t row = 0; row < count; ++row) {
    T* from = x + row * a.x.stride;
    if (a.added != nullptr) {
      add_row(static_cast<const T*>(a.added) + (first + row) * size, from, size);
    }
    norm_row(from, static_cast<const T*>(a.norm), normed + row * stride, size, a.norm_eps);
  }
  return {normed, count, size, stride};
}

}  // namespace KERNEL_ISA
