// x @ weight.T in bfloat16 on tile registers: 32 rows by one panel of 32 columns at a time.
//
// Every element is one chain over k in steps of 32, whatever the number of rows: sums go through
// memory between blocks of k, in float32, as they are. A block of a panel stays in the L1 cache
// while a block of rows, in the L2 cache, passes by.
#include "panels.h"

#if HAS_TILES

namespace KERNEL_ISA {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;    // elements
constexpr int64_t kBlockDepth = 512;  // of a panel: 32 KiB
constexpr int64_t kBlockRows = 128;
constexpr int64_t kPanelBytes = kPanel * 4;  // a step of a panel
constexpr int64_t kAhead = 4096;             // bytes of a panel that are asked for early
static_assert(kPanel == 2 * kTileRows && kBlockRows % (2 * kTileRows) == 0);

TileConfig config_of(int64_t rows) {
  const int64_t upper = min(rows, kTileRows), lower = rows - upper;
  TileConfig config;
  // Sums 0 to 3, rows 4 and 5, columns 6 and 7.
  for (int tile = 0; tile < 8; ++tile) {
    const bool is_lower = tile == 2 || tile == 3 || tile == 5;
    config.rows[tile] = static_cast<uint8_t>(tile > 5 ? kTileRows : is_lower ? lower : upper);
    config.row_bytes[tile] = config.rows[tile] > 0 ? 64 : 0;
  }
  return config;
}

// Rows of x, [32 or less][depth], times a block of a panel, into sums[rows][kPanel].
template <bool kHasLower>
void add_block(const BFloat16* x, int64_t stride, const BFloat16* panel, int64_t depth,
               bool is_first, float* sums) {
  constexpr int64_t kStride = kPanel * sizeof(float);
  float* lower = sums + kTileRows * kPanel;
  if (is_first) {
    zero_tile<0>();
    zero_tile<1>();
    if (kHasLower) zero_tile<2>(), zero_tile<3>();
  } else {
    load_tile<0>(sums, kStride);
    load_tile<1>(sums + kTileRows, kStride);
    if (kHasLower) load_tile<2>(lower, kStride), load_tile<3>(lower + kTileRows, kStride);
  }
  const char* weight = reinterpret_cast<const char*>(panel);
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    for (int64_t line = 0; line < kTileRows * kPanelBytes; line += 64) {
      __builtin_prefetch(weight + kAhead + line);
    }
    load_tile<6>(weight, kPanelBytes);
    load_tile<7>(weight + 64, kPanelBytes);
    load_tile<4>(x + k, stride * 2);
    multiply_tiles<0, 4, 6>();
    multiply_tiles<1, 4, 7>();
    if (kHasLower) {
      load_tile<5>(x + kTileRows * stride + k, stride * 2);
      multiply_tiles<2, 5, 6>();
      multiply_tiles<3, 5, 7>();
    }
    weight += kTileRows * kPanelBytes;
  }
  store_tile<0>(sums, kStride);
  store_tile<1>(sums + kTileRows, kStride);
  if (kHasLower) store_tile<2>(lower, kStride), store_tile<3>(lower + kTileRows, kStride);
}

class TileProduct {
 public:
  explicit TileProduct(const LinearArgs& args)
      : a_(args), depth_(depth_of<BFloat16>(args.x.columns)) {}

  void run() {
    x_ = a_.x;
    if (a_.norm != nullptr || a_.x.columns != depth_) {
      x_ = {a_.scratch, a_.x.rows, depth_, depth_};
      parallel_for(a_.pool, a_.x.rows, [&](int64_t row) { copy_row(row); });
    }
    const int64_t num_panels = ceil_div(a_.out.columns, kPanel);
    parallel_for(a_.pool, ceil_div(a_.x.rows, kBlockRows) * num_panels, [&](int64_t task) {
      int64_t first = task / num_panels * kBlockRows;
      multiply(task % num_panels, first, min(kBlockRows, a_.x.rows - first));
    });
  }

 private:
  // Whole tiles of a row, with zeros at its end.
  void copy_row(int64_t row) {
    BFloat16* to = static_cast<BFloat16*>(a_.scratch) + row * depth_;
    const Matrix from = normed_rows(a_, row, 1, to, depth_);
    const int64_t size = a_.x.columns;
    if (from.data != to) std::memcpy(to, from.data, size * sizeof(BFloat16));
    std::memset(to + size, 0, (depth_ - size) * sizeof(BFloat16));
  }

  void multiply(int64_t panel, int64_t first, int64_t rows) {
    alignas(64) float sums[kBlockRows * kPanel], ups[kBlockRows * kPanel];
    const int64_t column = panel * kPanel, columns = min(kPanel, a_.out.columns - column);
    sum_products(panel, first, rows, sums);
    if (a_.is_gated) sum_products(panel + a_.out.columns / kPanel, first, rows, ups);
    for (int64_t row = 0; row < rows; ++row) {
      BFloat16* out = static_cast<BFloat16*>(a_.out.data) + (first + row) * a_.out.stride + column;
      BFloat16 rounded[kPanel];
      round_row(sums + row * kPanel, rounded);
      if (a_.is_gated) {
        BFloat16 up[kPanel];
        round_row(ups + row * kPanel, up);
        activate_row(rounded, up, rounded, columns);
      }
      std::memcpy(out, rounded, columns * sizeof(BFloat16));
    }
  }

  static void round_row(const float* from, BFloat16* to) {
    for (int i = 0; i < kPanel; i += kLanes) store(to + i, load(from + i));
  }

  void sum_products(int64_t panel, int64_t first, int64_t rows, float* sums) {
    const BFloat16* weight = static_cast<const BFloat16*>(a_.weight) + panel * kPanel * depth_;
    const BFloat16* x = static_cast<const BFloat16*>(x_.data) + first * x_.stride;
    for (int64_t k = 0; k < depth_; k += kBlockDepth) {
      const int64_t depth = min(kBlockDepth, depth_ - k);
      int64_t configured = 0;
      for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
        const int64_t count = min(2 * kTileRows, rows - row);
        if (count != configured) configure_tiles(config_of(configured = count));
        auto add = count > kTileRows ? add_block<true> : add_block<false>;
        add(x + row * x_.stride + k, x_.stride, weight + k * kPanel, depth, k == 0,
            sums + row * kPanel);
      }
    }
    release_tiles();
  }

  const LinearArgs& a_;
  const int64_t depth_;
  Matrix x_{};
};

}  // namespace

void tile_linear(const LinearArgs& args) { TileProduct(args).run(); }

}  // namespace KERNEL_ISA

#endif
