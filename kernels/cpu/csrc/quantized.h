// The layout of quantized weights, the same for every instruction set.
//
// A panel has kQuantizedPanel columns (output features), one run of bytes for each panel. Missing
// columns, and the k that round the depth up, have weights that don't matter. Words are 4 bytes, one
// for each column:
//   int8: a row of float32 scales; then for every 4 k a row of words, their bytes weight + 128.
//   int4: two rows of float32: units of scales and of offsets. Then for every kGroup k, rows of
//         words for 8 k each, whose low nibbles are weight + 8 of the first 4 k and whose high
//         nibbles are those of the others; a row of unsigned bytes, the group's scales in units;
//         and one of signed bytes, its offsets in units.
// Sums of 65,536 products, which kernels/cpu/checks.py allows at most, cannot overflow.
// A weight is its integer times its scale, and with int4 its offset is added.
#pragma once

#include "kernels.h"

constexpr int kQuantizedPanel = 32;
constexpr int64_t kGroup = 32;

static constexpr int64_t quantized_depth(WeightFormat format, int64_t columns) {
  const int64_t unit = format == WeightFormat::kInt8 ? 64 : kGroup;
  return ceil_div(columns, unit) * unit;
}

static constexpr int64_t quantized_panel_bytes(WeightFormat format, int64_t columns) {
  const int64_t depth = quantized_depth(format, columns);
  if (format == WeightFormat::kInt8) return kQuantizedPanel * (4 + depth);
  return kQuantizedPanel * (8 + depth / 2 + depth / kGroup * 2);
}

// Sums that a row of x has beside it: of high bytes and of low bytes; or for each group an integer,
// and a float.
static constexpr int64_t num_row_sums(WeightFormat format, int64_t columns) {
  return format == WeightFormat::kInt8 ? 2 : 2 * (quantized_depth(format, columns) / kGroup);
}
