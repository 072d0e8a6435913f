// Vectors of float32 with bfloat16 loads and stores, for whichever instruction set is compiled.
//
// Nothing here may depend on how many rows are processed together: every operation is lane by lane
// or a reduction in one fixed order, and multiply-add is explicit (-ffp-contract=off), so that a
// row's arithmetic is the same in every loop that it runs through. Only plain functions and types
// of this namespace: an inline function of the standard library that is compiled here could be the
// copy that the linker keeps for all instruction sets.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace KERNEL_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecH __attribute__((vector_size(kLanes * 2)));

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

template <class V, class T>
inline V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

// Subtracting zero changes no value, so it compiles to a broadcast; adding it would turn -0 to 0.
inline VecF broadcast(float x) { return x - VecF{}; }

inline VecF multiply_add(VecF a, VecF b, VecF sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, sum);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, sum);
#else
  return a * b + sum;
#endif
}

inline VecF max(VecF a, VecF b) { return a > b ? a : b; }

inline VecF load(const float* p) { return load_as<VecF>(p); }

inline VecF load(const BFloat16* p) {
#if defined(__AVX512F__)
  VecU bits = (VecU)_mm512_cvtepu16_epi32(load_as<__m256i>(p));
#else
  VecU bits = __builtin_convertvector(load_as<VecH>(p), VecU);
#endif
  return (VecF)(bits << 16);
}

inline void store(float* p, VecF v) { std::memcpy(p, &v, sizeof v); }

inline void store(BFloat16* p, VecF v) {
#if defined(__AVX512BF16__)
  __m256bh h = _mm512_cvtneps_pbh(v);
#else
  VecU u = (VecU)v;
  VecU nearest_even = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  VecU quiet_nan = (u >> 16) | 0x40;
  VecH h = __builtin_convertvector(v == v ? nearest_even : quiet_nan, VecH);
#endif
  std::memcpy(p, &h, sizeof h);
}

// Loads the first n elements and zeros.
template <class T>
inline VecF load(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  T padded[kLanes] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load(padded);
}

template <class T>
inline void store(T* p, VecF v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  T padded[kLanes];
  store(padded, v);
  std::memcpy(p, padded, n * sizeof(T));
}

inline float sum_lanes(VecF v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  }
  return v[0];
#endif
}

inline float max_lanes(VecF v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#else
  float most = v[0];
  for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
#endif
}

inline VecI lane_numbers() {
  VecI v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// e^x within 2 ulp; 0 below -87, infinity from 88, NaN stays. Source: Cephes, expf.
inline VecF exp(VecF x) {
  const VecF shifter = broadcast(12582912.0f);  // 1.5 * 2^23: the sum's low bits are an integer
  VecF shifted = multiply_add(x, broadcast(1.44269504088896341f), shifter);
  VecI exponent = (VecI)shifted - (VecI)shifter;
  VecF n = shifted - shifter;
  VecF r = multiply_add(n, broadcast(-0.693359375f), x);
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  VecF y = broadcast(1.9875691500e-4f);
  y = multiply_add(y, r, broadcast(1.3981999507e-3f));
  y = multiply_add(y, r, broadcast(8.3334519073e-3f));
  y = multiply_add(y, r, broadcast(4.1665795894e-2f));
  y = multiply_add(y, r, broadcast(1.6666665459e-1f));
  y = multiply_add(y, r, broadcast(5.0000001201e-1f));
  y = multiply_add(y, r * r, r + 1.0f) * (VecF)((exponent + 127) << 23);
  y = x < -87.0f ? VecF{} : y;
  return x >= 88.0f ? broadcast(__builtin_inff()) : y;
}

// One step of a dot product: a single k in float32, a pair of them in bfloat16; 4 bytes either way.
template <class T>
constexpr int kStep = 4 / sizeof(T);

#if defined(__AVX512BF16__)
typedef __m512bh Pairs;

inline Pairs load_steps(const BFloat16* p) { return load_as<Pairs>(p); }

inline Pairs broadcast_step(const BFloat16* p) {
  return (Pairs)_mm512_set1_epi32(load_as<int32_t>(p));
}

inline VecF multiply_add(Pairs a, Pairs b, VecF sum) { return _mm512_dpbf16_ps(sum, a, b); }
#else
struct Pairs {
  VecF first, second;
};

inline Pairs split_pairs(VecU u) { return {(VecF)(u << 16), (VecF)(u & 0xffff0000u)}; }

inline Pairs load_steps(const BFloat16* p) { return split_pairs(load_as<VecU>(p)); }

inline Pairs broadcast_step(const BFloat16* p) { return split_pairs(VecU{} + load_as<uint32_t>(p)); }

inline VecF multiply_add(Pairs a, Pairs b, VecF sum) {
  return multiply_add(a.second, b.second, multiply_add(a.first, b.first, sum));
}
#endif

inline VecF load_steps(const float* p) { return load(p); }

inline VecF broadcast_step(const float* p) { return broadcast(*p); }

#if defined(__AVX512F__)
// Transposes a square of 4-byte units: pairs, then pairs of pairs, then 128-bit lanes twice.
inline void transpose(VecU (&rows)[kLanes]) {
  __m512i a[kLanes], b[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    a[i] = _mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = i; j < kLanes; j += 8) {
      a[j] = _mm512_shuffle_i32x4(b[j], b[j + 4], 0x88);
      a[j + 4] = _mm512_shuffle_i32x4(b[j], b[j + 4], 0xdd);
    }
    rows[i] = (VecU)_mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
    rows[i + 8] = (VecU)_mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
    rows[i + 4] = (VecU)_mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
    rows[i + 12] = (VecU)_mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd);
  }
}
#else
template <int... kLane>
struct Lanes {};

template <int kCount, int... kLane>
struct MakeLanes : MakeLanes<kCount - 1, kCount - 1, kLane...> {};

template <int... kLane>
struct MakeLanes<0, kLane...> {
  typedef Lanes<kLane...> Type;
};

// Interleaves the lower (kFrom = 0) or upper (kFrom = kLanes / 2) halves of two vectors.
template <int kFrom, int... kLane>
inline VecU interleave(VecU a, VecU b, Lanes<kLane...>) {
  return __builtin_shufflevector(a, b, (kFrom + kLane / 2 + kLane % 2 * kLanes)...);
}

// Transposes a square: log2(kLanes) rounds of interleaving row i with row i + kLanes / 2.
inline void transpose(VecU (&rows)[kLanes]) {
  const MakeLanes<kLanes>::Type lanes;
  for (int round = 1; round < kLanes; round *= 2) {
    VecU next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + kLanes / 2], lanes);
      next[2 * i + 1] = interleave<kLanes / 2>(rows[i], rows[i + kLanes / 2], lanes);
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}
#endif

// Loads kLanes steps of a row that has n elements left.
template <class T>
inline VecU load_units(const T* p, int64_t n) {
  constexpr int64_t kElements = kLanes * kStep<T>;
  if (n >= kElements) return load_as<VecU>(p);
  T padded[kElements] = {};
  if (n > 0) std::memcpy(padded, p, n * sizeof(T));
  return load_as<VecU>(padded);
}

inline void store_units(void* to, VecU units) { std::memcpy(to, &units, sizeof units); }

// Stores the first n units.
inline void store_units(void* to, VecU units, int64_t n) {
  if (n >= kLanes) return store_units(to, units);
#if defined(__AVX512F__)
  _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << n) - 1), (__m512i)units);
#else
  std::memcpy(to, &units, n * 4);
#endif
}

}  // namespace KERNEL_ISA
