// What the bindings and the algorithms agree on. The algorithm sources are compiled once for each
// instruction set, into a namespace of that name; each such build exports one Table.
//
// Strides are in elements, sizes of blocks in cache.cpp in bytes. Pointers and indices have been
// checked by the caller. Work with no pool is too small for more than one thread.
#pragma once

#include <cstdint>

class ThreadPool;
using Range = void (*)(const void* context, int64_t begin, int64_t end);

// Covers 0 to count by calls of range on the pool's threads, or by one call if there is no pool.
void run_ranges(ThreadPool* pool, int64_t count, Range range, const void* context);

template <class Body>
static void parallel_for(ThreadPool* pool, int64_t count, const Body& body) {
  Range range = [](const void* context, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) (*static_cast<const Body*>(context))(i);
  };
  run_ranges(pool, count, range, &body);
}

struct BFloat16 {
  uint16_t bits;
};

enum class DType { kFloat32, kBFloat16 };

// A matrix whose rows may be strided.
struct Matrix {
  void* data;
  int64_t rows;
  int64_t columns;
  int64_t stride;
};

struct LinearArgs {
  Matrix x;
  Matrix out;
  const void* weight;  // packed by Table::pack_linear
  void* scratch;       // 4-byte units: x.rows * ceil_div(x.columns, 4 / sizeof(element))
  ThreadPool* pool;
};

struct NormArgs {
  Matrix x;
  void* residual;  // contiguous, or null; becomes residual + x
  const void* weight;
  void* out;  // contiguous
  float eps;
  ThreadPool* pool;
};

// Heads are contiguous inside a token's row.
struct RopeArgs {
  Matrix x;  // columns = heads * head_dim
  int64_t head_dim;
  const int32_t* positions;
  const float* cos_sin;
  ThreadPool* pool;
};

// Some query rows (a row is a token's head) of one sequence against one KV head.
struct AttentionTask {
  int32_t sequence;
  int32_t kv_head;
  int64_t first_row;
  int64_t num_rows;
};

constexpr int kAttentionRows = 32;
constexpr int kMaxHeadDim = 256;

struct AttentionArgs {
  const void* query;
  int64_t query_stride;
  void* out;             // contiguous
  const void* keys;      // block 0 of the layer
  const void* values;    // likewise
  int64_t block_stride;  // between blocks of the arena
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t block_size;
  const int32_t* positions;
  const int32_t* query_start;
  const int32_t* block_tables;
  int64_t max_blocks;
  const AttentionTask* tasks;
  int64_t num_tasks;
  float scale;
  ThreadPool* pool;
};

struct Table {
  int64_t (*panel_width)();  // a packed weight's out_features are padded to a multiple of this
  void (*pack_linear)(DType, const Matrix& weight, void* packed, ThreadPool*);
  void (*linear)(DType, const LinearArgs&);
  void (*rms_norm)(DType, const NormArgs&);
  void (*rope)(DType, const RopeArgs&);
  void (*silu_and_mul)(DType, const Matrix& gate_up, void* out, ThreadPool*);
  void (*paged_attention)(DType, const AttentionArgs&);
};

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(KERNEL_ISA)
namespace KERNEL_ISA {
int64_t panel_width();
void pack_linear(DType, const Matrix& weight, void* packed, ThreadPool*);
void linear(DType, const LinearArgs&);
void rms_norm(DType, const NormArgs&);
void rope(DType, const RopeArgs&);
void silu_and_mul(DType, const Matrix& gate_up, void* out, ThreadPool*);
void paged_attention(DType, const AttentionArgs&);
}  // namespace KERNEL_ISA
#endif
