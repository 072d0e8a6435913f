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

// How a weight is stored: in the dtype of activations, or see quantized.h.
enum class WeightFormat { kDense, kInt8, kInt4 };

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
  const void* weight;  // packed by Table::pack_linear or pack_quantized
  void* scratch;       // linear_scratch_bytes(x.rows, x.columns)
  ThreadPool* pool;
  // Optional: added (contiguous) is summed into x in place, and x is normed before it is multiplied.
  const void* norm = nullptr;
  const void* added = nullptr;
  float norm_eps = 0.0f;
  // weight has the rows of gates, then as many of ups, a multiple of panel_width (of
  // kQuantizedPanel in another format than kDense); out is silu(gate) * up.
  bool is_gated = false;
  WeightFormat format = WeightFormat::kDense;
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

constexpr int kAttentionRows = 64;
constexpr int kMaxHeadDim = 256;
constexpr int64_t kSegment = 256;  // keys whose sums are folded into a row's together
// What is kept of a row's segment: its greatest score, the total of its weights, and head_dim sums.
constexpr int64_t kPartialHeader = 16;
constexpr int64_t kPartialStride = kPartialHeader + kMaxHeadDim;

// The columns of qkv are queries, keys and values; slots say where these two go.
struct RopeStoreArgs {
  Matrix qkv;        // queries are rotated in place
  const void* bias;  // added first; or null
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  const int32_t* positions;
  const float* cos_sin;
  void* keys;    // block 0 of the layer
  void* values;  // likewise
  const int64_t* slots;
  int64_t block_size;
  int64_t block_stride;
  ThreadPool* pool;
};

// Some query rows (a row is a token's head) of one sequence against one KV head: all segments of
// their context, or one whose sums go to partial. In AttentionArgs::folds, partial has those of all
// segments: [segments][num_rows][kPartialStride].
struct AttentionTask {
  int32_t sequence;
  int32_t kv_head;
  int64_t first_row;
  int64_t num_rows;
  int64_t segment;
  float* partial;
};

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
  const AttentionTask* folds;
  int64_t num_folds;
  float scale;
  ThreadPool* pool;
};

struct Table {
  int64_t (*panel_width)();  // a packed weight's out_features are padded to a multiple of this
  int64_t (*panel_depth)(DType, int64_t columns);  // and its in_features to this
  void (*pack_linear)(DType, const Matrix& weight, void* packed, ThreadPool*);
  void (*linear)(DType, const LinearArgs&);  // of any format
  void (*pack_quantized)(DType, WeightFormat, const Matrix& weight, void* packed, ThreadPool*);
  void (*rms_norm)(DType, const NormArgs&);
  void (*rope)(DType, const RopeArgs&);
  void (*silu_and_mul)(DType, const Matrix& gate_up, void* out, ThreadPool*);
  void (*paged_attention)(DType, const AttentionArgs&);
  void (*rope_and_store)(DType, const RopeStoreArgs&);
  void (*add)(DType, const Matrix& x, void* sum, ThreadPool*);  // sum is contiguous
};

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whatever the format: rows as they are multiplied, and normed.
static constexpr int64_t linear_scratch_bytes(int64_t rows, int64_t columns) {
  return 2 * rows * (columns + 64) * 4;
}

#if defined(KERNEL_ISA)
namespace KERNEL_ISA {
int64_t panel_width();
int64_t panel_depth(DType, int64_t columns);
void pack_linear(DType, const Matrix& weight, void* packed, ThreadPool*);
void linear(DType, const LinearArgs&);
void tile_linear(const LinearArgs&);  // in bfloat16, where there are tile registers
void pack_quantized(DType, WeightFormat, const Matrix& weight, void* packed, ThreadPool*);
void linear_quantized(DType, const LinearArgs&);
void rms_norm(DType, const NormArgs&);
void rope(DType, const RopeArgs&);
void silu_and_mul(DType, const Matrix& gate_up, void* out, ThreadPool*);
void paged_attention(DType, const AttentionArgs&);
void rope_and_store(DType, const RopeStoreArgs&);
void add(DType, const Matrix& x, void* sum, ThreadPool*);
}  // namespace KERNEL_ISA
#endif
