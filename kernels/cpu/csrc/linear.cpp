// x @ weight.T with the weight packed into panels of columns.
//
// An output element sums the chains of multiply-adds over kChain steps of k each, in order, in
// every tile shape: neither threads nor tiles split k otherwise. So a row's result doesn't depend
// on the rows beside it, and its rounding error grows with kChain, not with all of k.
//
// Few rows: the panels are one stream of memory for each thread. Many rows: a block of them stays in
// the L2 cache while all panels pass by.
#include "panels.h"

namespace KERNEL_ISA {
namespace {

constexpr int64_t kChain = 64;
// Accumulators (two for each row), two weights and a broadcast must fit the registers.
constexpr int kMaxRows = kLanes == 16 ? 12 : 6;
constexpr int64_t kBlockBytes = 384 << 10;  // of rows, less than the L2 cache
// The processor sees a stream of its own accord as long as little is computed beside it.
constexpr int kMaxStreamedRows = 4;
constexpr int64_t kAhead = 4096;            // bytes of a stream that are asked for early

// Packs rows of a matrix so that the same k of all rows lie together: [steps][rows][kStep].
// Missing rows, and what is missing of the steps, become zeros.
template <class T>
void pack_rows(const Matrix& source, int64_t num_rows, int64_t num_steps, T* packed) {
  for (int64_t step = 0; step < num_steps; step += kLanes) {
    for (int64_t row = 0; row < num_rows; row += kLanes) {
      VecU square[kLanes] = {};
      for (int lane = 0; lane < min(kLanes, source.rows - row); ++lane) {
        const T* from = static_cast<const T*>(source.data) + (row + lane) * source.stride;
        int64_t k = step * kStep<T>;
        if (k < source.columns) square[lane] = load_units(from + k, source.columns - k);
      }
      transpose(square);
      T* to = packed + (step * num_rows + row) * kStep<T>;
      for (int i = 0; i < min(kLanes, num_steps - step); ++i) {
        store_units(to + i * num_rows * kStep<T>, square[i], num_rows - row);
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
  const char* ahead;    // memory that will be needed, asked for on the way,
  int64_t ahead_bytes;  // so much at each step
};

template <class T, int kRows>
void multiply_tile(const Tile<T>& tile) {
  VecF total[kRows][2];
  const T* x = tile.x;
  const T* panel = tile.panel;
  const char* ahead = tile.ahead;
  for (int64_t start = 0; start < tile.num_steps; start += kChain) {
    VecF sum[kRows][2] = {};
    for (int64_t step = start; step < min(start + kChain, tile.num_steps); ++step) {
      if (kRows > kMaxStreamedRows) {
        __builtin_prefetch(ahead);
        if (kPanel * 4 > 64) __builtin_prefetch(ahead + 64);
        ahead += tile.ahead_bytes;
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
      total[row][0] = start == 0 ? sum[row][0] : total[row][0] + sum[row][0];
      total[row][1] = start == 0 ? sum[row][1] : total[row][1] + sum[row][1];
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
  const int64_t depth = depth_of<T>(weight.columns);
  parallel_for(pool, ceil_div(weight.rows, kPanel), [&](int64_t panel) {
    int64_t first = panel * kPanel;
    Matrix rows = {static_cast<T*>(weight.data) + first * weight.stride,
                   min(kPanel, weight.rows - first), weight.columns, weight.stride};
    pack_rows(rows, kPanel, depth / kStep<T>, static_cast<T*>(packed) + first * depth);
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
        panel_depth_(depth_of<T>(args.x.columns)),
        num_tiles_(ceil_div(args.x.rows, kMaxRows)),
        tile_rows_(ceil_div(args.x.rows, num_tiles_)),
        packed_(static_cast<T*>(args.scratch)),
        normed_(packed_ + args.x.rows * depth_) {}

  void run() {
    x_ = packed_;
    if (a_.x.rows > 1 || a_.x.columns != depth_) {
      parallel_for(a_.pool, num_tiles_, [&](int64_t tile) { pack_tile(tile); });
    } else {
      x_ = rows_of(0, 1).data;
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
  Matrix rows_of(int64_t first, int64_t count) {
    return normed_rows(a_, first, count, normed_ + first * a_.x.columns, a_.x.columns);
  }

  void pack_tile(int64_t tile) {
    int64_t first = tile * tile_rows_, rows = min(tile_rows_, a_.x.rows - first);
    pack_rows(rows_of(first, rows), rows, num_steps_, packed_ + first * depth_);
  }

  void multiply(int64_t panel, int64_t first_tile, int64_t end_tile) {
    const int64_t column = panel * kPanel, columns = min(kPanel, a_.out.columns - column);
    const T* gate = static_cast<const T*>(a_.weight) + column * panel_depth_;
    const T* up = gate + a_.out.columns * panel_depth_;
    for (int64_t tile = first_tile; tile < end_tile; ++tile) {
      int64_t first = tile * tile_rows_, rows = min(tile_rows_, a_.x.rows - first);
      T* out = static_cast<T*>(a_.out.data) + first * a_.out.stride + column;
      Tile<T> part = {static_cast<const T*>(x_) + first * depth_, gate, num_steps_, out,
                      a_.out.stride, columns, nullptr, 0};
      set_ahead(part, tile - first_tile, end_tile - first_tile);
      if (!a_.is_gated) {
        multiply_tile(part, rows);
        continue;
      }
      T gates[kMaxRows * kPanel], ups[kMaxRows * kPanel];
      part.out_stride = kPanel;
      part.out = gates;
      multiply_tile(part, rows);
      part.out = ups;
      part.panel = up;
      set_ahead(part, tile - first_tile, end_tile - first_tile);
      multiply_tile(part, rows);
      for (int64_t row = 0; row < rows; ++row) {
        activate_row(gates + row * kPanel, ups + row * kPanel, out + row * a_.out.stride, columns);
      }
    }
  }

  // A panel's only tile asks for what lies a little ahead of it, several tiles for the next panel,
  // a part each.
  void set_ahead(Tile<T>& part, int64_t tile, int64_t num_tiles) const {
    const char* panel = reinterpret_cast<const char*>(part.panel);
    part.ahead_bytes = kPanel * 4 / num_tiles;
    part.ahead = num_tiles == 1
                     ? panel + kAhead
                     : panel + kPanel * 4 * panel_depth_ / kStep<T> +
                           tile * num_steps_ * part.ahead_bytes;
  }

  const LinearArgs& a_;
  const int64_t num_steps_;
  const int64_t depth_;        // of rows
  const int64_t panel_depth_;  // of the weight
  const int64_t num_tiles_;
  const int64_t tile_rows_;
  T* const packed_;
  T* const normed_;
  const void* x_ = nullptr;
};

}  // namespace

int64_t panel_width() { return kPanel; }

int64_t panel_depth(DType dtype, int64_t columns) {
  return dtype == DType::kFloat32 ? depth_of<float>(columns) : depth_of<BFloat16>(columns);
}

void pack_linear(DType dtype, const Matrix& weight, void* packed, ThreadPool* pool) {
  auto run = dtype == DType::kFloat32 ? pack<float> : pack<BFloat16>;
  run(weight, packed, pool);
}

void linear(DType dtype, const LinearArgs& args) {
  if (args.x.rows == 0) return;
  if (dtype == DType::kFloat32) return Product<float>(args).run();
#if HAS_TILES
  tile_linear(args);
#else
  Product<BFloat16>(args).run();
#endif
}

}  // namespace KERNEL_ISA
