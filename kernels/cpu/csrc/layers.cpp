// Operations on rows: norms, rotary embedding, activation. A row is one thread's work.
#include "rows.h"

namespace KERNEL_ISA {
namespace {

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
void rotate_rows(const RopeArgs& a) {
  const int64_t half = a.head_dim / 2;
  parallel_for(a.pool, a.x.rows, [&](int64_t row) {
    T* x = static_cast<T*>(a.x.data) + row * a.x.stride;
    const float* cosines = a.cos_sin + a.positions[row] * a.head_dim;
    for (int64_t column = 0; column < a.x.columns; column += a.head_dim) {
      rotate_head(x + column, x + column, cosines, cosines + half, half);
    }
  });
}

template <class T>
void rotate_and_store_rows(const RopeStoreArgs& a) {
  const int64_t dim = a.head_dim, half = dim / 2;
  parallel_for(a.pool, a.qkv.rows, [&](int64_t row) {
    T* x = static_cast<T*>(a.qkv.data) + row * a.qkv.stride;
    if (a.bias != nullptr) add_row(static_cast<const T*>(a.bias), x, a.qkv.columns);
    const float* cosines = a.cos_sin + a.positions[row] * dim;
    for (int64_t head = 0; head < a.num_heads; ++head, x += dim) {
      rotate_head(x, x, cosines, cosines + half, half);
    }
    int64_t place = a.slots[row] / a.block_size * a.block_stride + a.slots[row] % a.block_size * dim;
    T* key = static_cast<T*>(a.keys) + place;
    T* value = static_cast<T*>(a.values) + place;
    for (int64_t head = 0; head < a.num_kv_heads; ++head, x += dim) {
      rotate_head(x, key + head * a.block_size * dim, cosines, cosines + half, half);
      std::memcpy(value + head * a.block_size * dim, x + a.num_kv_heads * dim, dim * sizeof(T));
    }
  });
}

template <class T>
void activate_rows(const Matrix& gate_up, void* out, ThreadPool* pool) {
  const int64_t size = gate_up.columns / 2;
  parallel_for(pool, gate_up.rows, [&](int64_t row) {
    const T* gate = static_cast<const T*>(gate_up.data) + row * gate_up.stride;
    activate_row(gate, gate + size, static_cast<T*>(out) + row * size, size);
  });
}

template <class T>
void sum_rows(const Matrix& x, void* sum, ThreadPool* pool) {
  parallel_for(pool, x.rows, [&](int64_t row) {
    add_row(static_cast<const T*>(x.data) + row * x.stride,
            static_cast<T*>(sum) + row * x.columns, x.columns);
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

void rope_and_store(DType dtype, const RopeStoreArgs& args) {
  auto run = dtype == DType::kFloat32 ? rotate_and_store_rows<float>
                                      : rotate_and_store_rows<BFloat16>;
  run(args);
}

void silu_and_mul(DType dtype, const Matrix& gate_up, void* out, ThreadPool* pool) {
  auto run = dtype == DType::kFloat32 ? activate_rows<float> : activate_rows<BFloat16>;
  run(gate_up, out, pool);
}

void add(DType dtype, const Matrix& x, void* sum, ThreadPool* pool) {
  auto run = dtype == DType::kFloat32 ? sum_rows<float> : sum_rows<BFloat16>;
  run(x, sum, pool);
}

}  // namespace KERNEL_ISA
