// x @ weight.T with the weight packed into panels of columns.
//
// An output element sums the chains of multiply-adds over kChain steps of k each, in order, in
// every tile shape: neither threads nor tiles split k otherwise. So a row's result doesn't depend
// on the rows beside it, and its rounding error grows with kChain, not with all of k.
#include "simd.h"

namespace KERNEL_ISA {
namespace {

constexpr int kPanel = 2 * kLanes;
constexpr int64_t kChain = 64;
// Accumulators (two for each row), two weights and a broadcast must fit the registers.
constexpr int kMaxRows = kLanes == 16 ? 12 : 6;

// Packs rows of a matrix so that the same k of all rows lie together: [steps][rows][kStep].
// Missing rows and a missing last k become zeros.
template <class T>
void pack_rows(const T* source, int64_t stride, int64_t num_valid, int64_t num_rows, int64_t depth,
               T* packed) {
  constexpr int64_t kBlock = 64 / sizeof(T);  // a cache line of each row at a time
  for (int64_t start = 0; start < depth; start += kBlock) {
    int64_t end = min(start + kBlock, depth);
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t k = start; k < end; k += kStep<T>) {
        T* to = packed + (k / kStep<T> * num_rows + row) * kStep<T>;
        for (int i = 0; i < kStep<T>; ++i) {
          to[i] = row < num_valid && k + i < depth ? source[row * stride + k + i] : T{};
        }
      }
    }
  }
}

template <class T>
struct Tile {
  const T* x;      // [steps][rows][kStep]
  const T* panel;  // [steps][kPanel][kStep]
  int64_t num_steps;
  T* out;
  int64_t out_stride;
  int64_t num_columns;
};

template <class T, int kRows>
void multiply_tile(const Tile<T>& tile) {
  VecF total[kRows][2] = {};
  const T* x = tile.x;
  const T* panel = tile.panel;
  for (int64_t start = 0; start < tile.num_steps; start += kChain) {
    VecF sum[kRows][2] = {};
    for (int64_t step = start; step < min(start + kChain, tile.num_steps); ++step) {
      auto low = load_steps(panel);
      auto high = load_steps(panel + kLanes * kStep<T>);
      for (int row = 0; row < kRows; ++row) {
        auto value = broadcast_step(x + row * kStep<T>);
        sum[row][0] = multiply_add(low, value, sum[row][0]);
        sum[row][1] = multiply_add(high, value, sum[row][1]);
      }
      x += kRows * kStep<T>;
      panel += kPanel * kStep<T>;
    }
    for (int row = 0; row < kRows; ++row) {
      total[row][0] += sum[row][0];
      total[row][1] += sum[row][1];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    T* out = tile.out + row * tile.out_stride;
    store(out, total[row][0], tile.num_columns);
    if (tile.num_columns > kLanes) store(out + kLanes, total[row][1], tile.num_columns - kLanes);
  }
}

template <class T, int kRows = kMaxRows>
void multiply_tile(const Tile<T>& tile, int64_t num_rows) {
  if (num_rows == kRows) return multiply_tile<T, kRows>(tile);
  if constexpr (kRows > 1) return multiply_tile<T, kRows - 1>(tile, num_rows);
}

template <class T>
void pack(const Matrix& weight, void* packed, ThreadPool* pool) {
  const int64_t depth = ceil_div(weight.columns, kStep<T>) * kStep<T>;
  parallel_for(pool, ceil_div(weight.rows, kPanel), [&](int64_t panel) {
    int64_t first = panel * kPanel;
    pack_rows(static_cast<const T*>(weight.data) + first * weight.stride, weight.stride,
              min(kPanel, weight.rows - first), kPanel, weight.columns,
              static_cast<T*>(packed) + first * depth);
  });
}

template <class T>
void multiply(const LinearArgs& a) {
  const int64_t num_steps = ceil_div(a.x.columns, kStep<T>);
  const int64_t depth = num_steps * kStep<T>;
  const int64_t num_tiles = ceil_div(a.x.rows, kMaxRows);
  const int64_t tile_rows = ceil_div(a.x.rows, num_tiles);
  const int64_t num_tasks = ceil_div(a.out.columns, kPanel) * num_tiles;
  const T* x = static_cast<const T*>(a.x.data);
  if (a.x.rows > 1 || a.x.columns != depth) {
    T* packed = static_cast<T*>(a.scratch);
    parallel_for(a.pool, num_tiles, [&](int64_t tile) {
      int64_t first = tile * tile_rows;
      int64_t rows = min(tile_rows, a.x.rows - first);
      pack_rows(x + first * a.x.stride, a.x.stride, rows, rows, a.x.columns,
                packed + first * depth);
    });
    x = packed;
  }
  parallel_for(a.pool, num_tasks, [&](int64_t task) {
    int64_t column = task / num_tiles * kPanel;
    int64_t first = task % num_tiles * tile_rows;
    Tile<T> tile = {x + first * depth,
                    static_cast<const T*>(a.weight) + column * depth,
                    num_steps,
                    static_cast<T*>(a.out.data) + first * a.out.stride + column,
                    a.out.stride,
                    min(kPanel, a.out.columns - column)};
    multiply_tile(tile, min(tile_rows, a.x.rows - first));
  });
}

}  // namespace

int64_t panel_width() { return kPanel; }

void pack_linear(DType dtype, const Matrix& weight, void* packed, ThreadPool* pool) {
  auto run = dtype == DType::kFloat32 ? pack<float> : pack<BFloat16>;
  run(weight, packed, pool);
}

void linear(DType dtype, const LinearArgs& args) {
  auto run = dtype == DType::kFloat32 ? multiply<float> : multiply<BFloat16>;
  run(args);
}

}  // namespace KERNEL_ISA
