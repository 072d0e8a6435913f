// Passes over one row of scores, lane by lane. Sums are in double, in one order for each length.
#include "scores.h"
#include "simd.h"

namespace KERNEL_ISA {

namespace {

constexpr int kHalf = kLanes / 2;
typedef double VecD __attribute__((vector_size(kLanes * 4)));
typedef float HalfF __attribute__((vector_size(kLanes * 2)));
typedef int32_t HalfI __attribute__((vector_size(kLanes * 2)));

constexpr float kInfinity = __builtin_inff();
// Fails all comparisons.
constexpr float kNone = __builtin_nanf("");

inline bool any(VecI mask) {
  const VecI none = {};
  return std::memcmp(&mask, &none, sizeof mask) != 0;
}

// Like load, with another value after the end.
template <class T>
inline VecF load_or(const T* p, int64_t n, float rest) {
  if (n >= kLanes) return load(p);
  VecI lanes = lane_numbers();
  return lanes < static_cast<int32_t>(n) ? load(p, n) : broadcast(rest);
}

template <class T>
int64_t argmax_of(const T* row, int64_t count) {
  VecF most = broadcast(-kInfinity);
  for (int64_t i = 0; i < count; i += kLanes) most = max(load_or(row + i, count - i, -kInfinity), most);
  const float largest = max_lanes(most);
  for (int64_t i = 0; i < count; i += kLanes) {
    VecI equal = load_or(row + i, count - i, kNone) == largest;
    if (!any(equal)) continue;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (equal[lane]) return i + lane;
    }
  }
  return 0;
}

int64_t argmax(DType dtype, const void* row, int64_t count) {
  return dtype == DType::kBFloat16 ? argmax_of(static_cast<const BFloat16*>(row), count)
                                   : argmax_of(static_cast<const float*>(row), count);
}

Extremes scale(const float* row, int64_t count, float divisor, float* scaled) {
  VecF most = broadcast(-kInfinity), least = broadcast(kInfinity);
  for (int64_t i = 0; i < count; i += kLanes) {
    const VecF x = load_or(row + i, count - i, kNone) / broadcast(divisor);
    most = max(x, most);
    least = x < least ? x : least;
    store(scaled + i, x, count - i);
  }
  return {-max_lanes(-least), max_lanes(most)};
}

void exponentiate(const float* row, int64_t count, float largest, float* weights) {
  for (int64_t i = 0; i < count; i += kLanes) {
    VecF x = load_or(row + i, count - i, -kInfinity) - broadcast(largest);
    store(weights + i, exp(x), count - i);
  }
}

double sum_lanes(VecD v) {
  double total = 0.0;
  for (int lane = 0; lane < kHalf; ++lane) total += v[lane];
  return total;
}

// Half as many floats as fit a vector fill one as doubles.
inline VecD widen(HalfF v) { return __builtin_convertvector(v, VecD); }

double sum(const float* weights, int64_t count) {
  VecD total = {};
  int64_t i = 0;
  for (; i + kHalf <= count; i += kHalf) total += widen(load_as<HalfF>(weights + i));
  double rest = 0.0;
  for (; i < count; ++i) rest += weights[i];
  return sum_lanes(total) + rest;
}

int64_t count_lanes(VecI hits) {
  int64_t count = 0;
  for (int lane = 0; lane < kLanes; ++lane) count += hits[lane];
  return count;
}

Share share_from(const float* row, const float* weights, int64_t count, float bound) {
  VecD totals[2] = {};
  HalfI hits[2] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int part = 0; part < 2; ++part) {
      const int64_t at = i + part * kHalf;
      const HalfI hit = load_as<HalfF>(row + at) >= bound;
      hits[part] -= hit;
      totals[part] += widen((HalfF)(hit & load_as<HalfI>(weights + at)));
    }
  }
  Share share = {0, sum_lanes(totals[0] + totals[1])};
  for (int lane = 0; lane < kHalf; ++lane) share.count += hits[0][lane] + hits[1][lane];
  for (; i < count; ++i) {
    share.count += row[i] >= bound;
    share.weight += row[i] >= bound ? weights[i] : 0.0f;
  }
  return share;
}

int64_t count_from(const float* row, int64_t count, float bound) {
  VecI hits = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    hits -= load_or(row + i, count - i, kNone) >= bound;
  }
  return count_lanes(hits);
}

int64_t count_above(const float* row, int64_t count, float bound) {
  VecI hits = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    hits -= load_or(row + i, count - i, kNone) > bound;
  }
  return count_lanes(hits);
}

int64_t places_between(const float* row, int64_t count, float low, float high, int32_t* places) {
  int64_t num_places = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    VecF x = load_or(row + i, count - i, kNone);
    VecI hit = (x >= low) & (x < high);
    if (!any(hit)) continue;
#if defined(__AVX512F__)
    const __mmask16 mask = _mm512_movepi32_mask((__m512i)hit);
    const VecI all = lane_numbers() + static_cast<int32_t>(i);
    _mm512_storeu_si512(places + num_places, _mm512_maskz_compress_epi32(mask, (__m512i)all));
    num_places += __builtin_popcount(mask);
#else
    for (int lane = 0; lane < kLanes; ++lane) {
      if (hit[lane]) places[num_places++] = static_cast<int32_t>(i + lane);
    }
#endif
  }
  return num_places;
}

}  // namespace

extern const RowPasses row_passes;
const RowPasses row_passes = {argmax,     scale,      exponentiate, sum,
                              share_from, count_from, count_above,  places_between};

}  // namespace KERNEL_ISA
