// x @ weight.T with the weight packed into panels of columns.
//
// An output element sums the chains of multiply-adds over kChain steps of k each, in order, in
// every tile shape: neither threads nor tiles split k otherwise. So a row's result doesn't depend
// on the rows beside it, and its rounding error grows with kChain, not with all of k.
//
// Few rows: the panels are one stream of memory for each thread, fetched ahead. Many rows: a block
// of them stays in the L2 cache while all panels pass by.
#include "rows.h"

namespace KERNEL_ISA {
namespace {

constexpr int kPanel = 2 * kLanes;
constexpr int64_t kChain = 64;
// Accumulators (two for each row), two weights and a broadcast must fit the registers.
constexpr int kMaxRows = kLanes == 16 ? 12 : 6;
constexpr int64_t kBlockBytes = 384 << 10;  // of rows, less than the L2 cache
constexpr int64_t kAhead = 4096;            // bytes of a stream that are asked for early

template <class T>
int64_t depth_of(int64_t columns) {
  return ceil_div(columns, kStep<T>) * kStep<T>;
}

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

// kIsFirst: the panel comes from memory.
template <class T, int kRows, bool kIsFirst>
void multiply_tile(const Tile<T>& tile) {
  VecF total[kRows][2] = {};
  const T* x = tile.x;
  const T* panel = tile.panel;
  for (int64_t start = 0; start < tile.num_steps; start += kChain) {
    VecF sum[kRows][2] = {};
    for (int64_t step = start; step < min(start + kChain, tile.num_steps); ++step) {
      if (kIsFirst) {
        __builtin_prefetch(reinterpret_cast<const char*>(panel) + kAhead);
        if (kPanel * 4 > 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(panel) + kAhead + 64);
        }
      }
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
void multiply_tile(const Tile<T>& tile, int64_t num_rows, bool is_first) {
  if (num_rows == kRows) {
    return is_first ? multiply_tile<T, kRows, true>(tile) : multiply_tile<T, kRows, false>(tile);
  }
  if constexpr (kRows > 1) return multiply_tile<T, kRows - 1>(tile, num_rows, is_first);
}

template <class T>
void pack(const Matrix& weight, void* packed, ThreadPool* pool) {
  const int64_t depth = depth_of<T>(weight.columns);
  parallel_for(pool, ceil_div(weight.rows, kPanel), [&](int64_t panel) {
    int64_t first = panel * kPanel;
    pack_rows(static_cast<const T*>(weight.data) + first * weight.stride, weight.stride,
              min(kPanel, weight.rows - first), kPanel, weight.columns,
              static_cast<T*>(packed) + first * depth);
  });
}

// One product. Rows are cut into tiles of nearly equal height, tiles into blocks.
template <class T>
class Product {
 public:
  explicit Product(const LinearArgs& args)
      : a_(args),
        num_steps_(ceil_div(args.x.columns, kStep<T>)),
        depth_(num_steps_ * kStep<T>),
        num_tiles_(ceil_div(args.x.rows, kMaxRows)),
        tile_rows_(ceil_div(args.x.rows, num_tiles_)),
        packed_(static_cast<T*>(args.scratch)),
        normed_(packed_ + args.x.rows * depth_) {}

  void run() {
    const bool is_packed = a_.x.rows > 1 || a_.x.columns != depth_;
    x_ = packed_;
    if (is_packed) {
      parallel_for(a_.pool, num_tiles_, [&](int64_t tile) { pack_tile(tile); });
    } else {
      x_ = norm_rows(0, 1);
    }
    const int64_t num_panels = ceil_div(a_.out.columns, kPanel);
    const int64_t block =
        min(num_tiles_, 1 + kBlockBytes / (tile_rows_ * depth_ * int64_t{sizeof(T)}));
    const int64_t num_blocks = ceil_div(num_tiles_, block);
    parallel_for(a_.pool, num_blocks * num_panels, [&](int64_t task) {
      int64_t first = task / num_panels * block;
      multiply(task % num_panels, first, min(first + block, num_tiles_));
    });
  }

 private:
  // Rows as they are multiplied: added up, then normed, if that is asked for.
  const T* norm_rows(int64_t first, int64_t count) {
    const int64_t size = a_.x.columns;
    const T* x = static_cast<const T*>(a_.x.data);
    if (a_.norm == nullptr) return x + first * a_.x.stride;
    for (int64_t row = first; row < first + count; ++row) {
      T* from = static_cast<T*>(a_.x.data) + row * a_.x.stride;
      if (a_.added != nullptr) add_row(static_cast<const T*>(a_.added) + row * size, from, size);
      norm_row(from, static_cast<const T*>(a_.norm), normed_ + row * size, size, a_.norm_eps);
    }
    return normed_ + first * size;
  }

  void pack_tile(int64_t tile) {
    int64_t first = tile * tile_rows_, rows = min(tile_rows_, a_.x.rows - first);
    const T* from = norm_rows(first, rows);
    pack_rows(from, a_.norm == nullptr ? a_.x.stride : a_.x.columns, rows, rows, a_.x.columns,
              packed_ + first * depth_);
  }

  void multiply(int64_t panel, int64_t first_tile, int64_t end_tile) {
    const T* weight = static_cast<const T*>(a_.weight);
    const int64_t column = panel * kPanel, columns = min(kPanel, a_.out.columns - column);
    for (int64_t tile = first_tile; tile < end_tile; ++tile) {
      int64_t first = tile * tile_rows_, rows = min(tile_rows_, a_.x.rows - first);
      T* out = static_cast<T*>(a_.out.data) + first * a_.out.stride + column;
      Tile<T> gate = {x_ + first * depth_, weight + column * depth_, num_steps_, out,
                      a_.out.stride,       columns};
      if (!a_.is_gated) {
        multiply_tile(gate, rows, tile == first_tile);
        continue;
      }
      T gates[kMaxRows * kPanel], ups[kMaxRows * kPanel];
      Tile<T> up = gate;
      up.panel = weight + (a_.out.columns + column) * depth_;
      gate.out = gates;
      up.out = ups;
      gate.out_stride = up.out_stride = kPanel;
      multiply_tile(gate, rows, tile == first_tile);
      multiply_tile(up, rows, tile == first_tile);
      for (int64_t row = 0; row < rows; ++row) {
        activate_row(gates + row * kPanel, ups + row * kPanel, out + row * a_.out.stride, columns);
      }
    }
  }

  const LinearArgs& a_;
  const int64_t num_steps_;
  const int64_t depth_;
  const int64_t num_tiles_;
  const int64_t tile_rows_;
  T* const packed_;
  T* const normed_;
  const T* x_ = nullptr;
};

}  // namespace

int64_t panel_width() { return kPanel; }

void pack_linear(DType dtype, const Matrix& weight, void* packed, ThreadPool* pool) {
  auto run = dtype == DType::kFloat32 ? pack<float> : pack<BFloat16>;
  run(weight, packed, pool);
}

void linear(DType dtype, const LinearArgs& args) {
  if (args.x.rows == 0) return;
  dtype == DType::kFloat32 ? Product<float>(args).run() : Product<BFloat16>(args).run();
}

}  // namespace KERNEL_ISA
