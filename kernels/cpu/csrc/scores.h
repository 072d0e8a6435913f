// Reading rows of scores: what the bindings, the choices and the passes over a row agree on.
//
// A pass goes once over one row and is compiled for each instruction set; choices are made of a
// few passes and of sorting what little they leave. Tokens rank by score, equal ones by number.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"

struct Extremes {
  float least;
  float largest;
};

constexpr int64_t kRoom = 16;

// How many tokens score at least as high as a bound, and the sum of their weights.
struct Share {
  int64_t count;
  double weight;
};

struct RowPasses {
  int64_t (*argmax)(DType, const void* row, int64_t count);
  // Divides into scaled.
  Extremes (*scale)(const float* row, int64_t count, float divisor, float* scaled);
  // e to the power of each score less the largest.
  void (*exponentiate)(const float* row, int64_t count, float largest, float* weights);
  double (*sum)(const float* weights, int64_t count);
  Share (*share_from)(const float* row, const float* weights, int64_t count, float bound);
  int64_t (*count_from)(const float* row, int64_t count, float bound);
  int64_t (*count_above)(const float* row, int64_t count, float bound);
  // The places of scores from low up to and without high, in their order; overwrites some of the
  // kRoom places after them.
  int64_t (*places_between)(const float* row, int64_t count, float low, float high,
                            int32_t* places);
};

// One row to draw from: its number, how it is cut, and a number in [0, 1) for each token.
struct DrawRow {
  int64_t row;
  float temperature;
  int64_t top_k;  // 0: all tokens
  double top_p;
  double min_p;
  std::vector<double> uniforms;
};

// The best ``count`` tokens of a row go to ``ids`` and ``scores``.
struct TopRow {
  int64_t row;
  int64_t count;
  int64_t* ids;
  float* scores;
};

std::vector<int64_t> draw_row(const RowPasses&, const Matrix& scores, const DrawRow&);
void top_of_row(const RowPasses&, const Matrix& scores, const TopRow&);
float log_sum_exp(const RowPasses&, const Matrix& scores, int64_t row);
