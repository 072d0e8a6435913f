// Operations on single rows: norms, rotary embedding, activation. A row is one thread's work.
#include "simd.h"

namespace KERNEL_ISA {
namespace {

template <class T>
void norm_row(const T* x, const T* weight, T* out, int64_t size, float eps) {
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

template <class T>
void add_row(const T* x, T* residual, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) {
    store(residual + i, load(x + i, size - i) + load(residual + i, size - i), size - i);
  }
}

template <class T>
void norm_rows(const NormArgs& a) {
  const int64_t size = a.x.columns;
  parallel_for(a.pool, a.x.rows, [&](int64_t row) {
    const T* x = static_cast<const T*>(a.x.data) + row * a.x.stride;
    if (a.residual != nullptr) {
      T* residual = static_cast<T*>(a.residual) + row * size;
      add_row(x, residual, size);
      x = residual;
    }
    norm_row(x, static_cast<const T*>(a.weight), static_cast<T*>(a.out) + row * size, size, a.eps);
  });
}

template <class T>
void rotate_head(T* x, const float* cosines, const float* sines, int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    int64_t n = half - i;
    VecF first = load(x + i, n), second = load(x + half + i, n);
    VecF c = load(cosines + i, n), s = load(sines + i, n);
    store(x + i, first * c - second * s, n);
    store(x + half + i, second * c + first * s, n);
  }
}

template <class T>
void rotate_rows(const RopeArgs& a) {
  const int64_t half = a.head_dim / 2;
  parallel_for(a.pool, a.x.rows, [&](int64_t row) {
    T* x = static_cast<T*>(a.x.data) + row * a.x.stride;
    const float* cosines = a.cos_sin + a.positions[row] * a.head_dim;
    for (int64_t column = 0; column < a.x.columns; column += a.head_dim) {
      rotate_head(x + column, cosines, cosines + half, half);
    }
  });
}

template <class T>
void activate_rows(const Matrix& gate_up, void* out, ThreadPool* pool) {
  const int64_t size = gate_up.columns / 2;
  parallel_for(pool, gate_up.rows, [&](int64_t row) {
    const T* gate = static_cast<const T*>(gate_up.data) + row * gate_up.stride;
    T* to = static_cast<T*>(out) + row * size;
    for (int64_t i = 0; i < size; i += kLanes) {
      int64_t n = size - i;
      VecF g = load(gate + i, n);
      store(to + i, g / (exp(-g) + 1.0f) * load(gate + size + i, n), n);
    }
  });
}

}  // namespace

void rms_norm(DType dtype, const NormArgs& args) {
  auto run = dtype == DType::kFloat32 ? norm_rows<float> : norm_rows<BFloat16>;
  run(args);
}

void rope(DType dtype, const RopeArgs& args) {
  auto run = dtype == DType::kFloat32 ? rotate_rows<float> : rotate_rows<BFloat16>;
  run(args);
}

void silu_and_mul(DType dtype, const Matrix& gate_up, void* out, ThreadPool* pool) {
  auto run = dtype == DType::kFloat32 ? activate_rows<float> : activate_rows<BFloat16>;
  run(gate_up, out, pool);
}

}  // namespace KERNEL_ISA
