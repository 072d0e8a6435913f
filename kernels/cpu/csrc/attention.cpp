// Causal attention over paged keys and values, with an online softmax over tiles of keys.
//
// A row is one query head of one token. Tiles of keys start at multiples of kKeys from position 0
// and hold a row's keys up to its own position, whatever the block size and whichever rows share
// the tile; scores are chains over head_dim, outputs are chains over keys. So a row's arithmetic
// depends on its position alone. Source: FlashAttention (Dao et al., 2022), algorithm 1.
#include "simd.h"

namespace KERNEL_ISA {
namespace {

constexpr int kKeys = 32;
constexpr int kRowGroup = 4;  // rows that share a pass over the keys
static_assert(kKeys % (2 * kLanes) == 0 && kAttentionRows % kRowGroup == 0);

// What one task keeps in float32; the stride of head_dim is a whole number of vectors.
struct Scratch {
  alignas(64) float query[kAttentionRows * kMaxHeadDim];
  alignas(64) float sums[kAttentionRows * kMaxHeadDim];
  alignas(64) float keys[kMaxHeadDim * kKeys];  // [head_dim][kKeys]
  alignas(64) float values[kKeys * kMaxHeadDim];
  alignas(64) float scores[kAttentionRows * kKeys];
  float most[kAttentionRows];
  float total[kAttentionRows];
  int64_t position[kAttentionRows];
};

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
inline VecF interleave(VecF a, VecF b, Lanes<kLane...>) {
  return __builtin_shufflevector(a, b, (kFrom + kLane / 2 + kLane % 2 * kLanes)...);
}

// Transposes a square: log2(kLanes) rounds of interleaving row i with row i + kLanes / 2.
inline void transpose(VecF (&rows)[kLanes]) {
  const MakeLanes<kLanes>::Type lanes;
  for (int round = 1; round < kLanes; round *= 2) {
    VecF next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + kLanes / 2], lanes);
      next[2 * i + 1] = interleave<kLanes / 2>(rows[i], rows[i + kLanes / 2], lanes);
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

template <class T>
class Attention {
 public:
  Attention(const AttentionArgs& args, const AttentionTask& task)
      : args_(args),
        task_(task),
        dim_(args.head_dim),
        stride_(ceil_div(args.head_dim, kLanes) * kLanes),
        group_(args.num_heads / args.num_kv_heads),
        first_token_(args.query_start[task.sequence]) {}

  void run() {
    load_queries();
    int64_t num_keys = s_.position[task_.num_rows - 1] + 1;
    for (int64_t first = 0; first < num_keys; first += kKeys) {
      load_tile(first, min(kKeys, num_keys - first));
      for (int64_t row = 0; row < task_.num_rows; row += kRowGroup) score_rows(row);
      for (int64_t row = 0; row < task_.num_rows; ++row) {
        int64_t num_visible = min(kKeys, s_.position[row] + 1 - first);
        if (num_visible > 0) add_tile(row, num_visible);
      }
    }
    store_rows();
  }

 private:
  int64_t token(int64_t row) const { return first_token_ + (task_.first_row + row) / group_; }

  int64_t head(int64_t row) const {
    return task_.kv_head * group_ + (task_.first_row + row) % group_;
  }

  void load_queries() {
    for (int64_t row = 0; row < task_.num_rows; ++row) {
      const T* query = static_cast<const T*>(args_.query) + token(row) * args_.query_stride +
                       head(row) * dim_;
      for (int64_t i = 0; i < dim_; i += kLanes) {
        store(s_.query + row * stride_ + i, load(query + i, dim_ - i) * args_.scale);
        store(s_.sums + row * stride_ + i, VecF{});
      }
      s_.position[row] = args_.positions[token(row)];
      s_.most[row] = -__builtin_inff();
      s_.total[row] = 0.0f;
    }
    // The last group is computed whole; its missing rows' scores are not used.
    for (int64_t row = task_.num_rows; row % kRowGroup != 0; ++row) {
      std::memset(s_.query + row * stride_, 0, stride_ * sizeof(float));
    }
  }

  // Loads a tile of keys, transposed, and of values; keys past num_keys become zeros.
  void load_tile(int64_t first, int64_t num_keys) {
    const int32_t* table = args_.block_tables + task_.sequence * args_.max_blocks;
    static constexpr T kZeros[kMaxHeadDim] = {};
    const T* keys[kKeys];
    for (const T*& key : keys) key = kZeros;
    for (int64_t j = 0; j < num_keys; ++j) {
      int64_t block = table[(first + j) / args_.block_size];
      int64_t offset = block * args_.block_stride +
                       (task_.kv_head * args_.block_size + (first + j) % args_.block_size) * dim_;
      keys[j] = static_cast<const T*>(args_.keys) + offset;
      const T* value = static_cast<const T*>(args_.values) + offset;
      for (int64_t i = 0; i < dim_; i += kLanes) {
        store(s_.values + j * stride_ + i, load(value + i, dim_ - i));
      }
    }
    for (int64_t j = 0; j < kKeys; j += kLanes) {
      for (int64_t i = 0; i < dim_; i += kLanes) {
        VecF square[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
          square[lane] = load(keys[j + lane] + i, dim_ - i);
        }
        transpose(square);
        for (int lane = 0; lane < kLanes; ++lane) store(s_.keys + (i + lane) * kKeys + j, square[lane]);
      }
    }
  }

  void score_rows(int64_t row) {
    const float* query = s_.query + row * stride_;
    for (int64_t j = 0; j < kKeys; j += 2 * kLanes) {
      VecF sum[kRowGroup][2] = {};
      for (int64_t i = 0; i < dim_; ++i) {
        VecF low = load(s_.keys + i * kKeys + j), high = load(s_.keys + i * kKeys + j + kLanes);
        for (int r = 0; r < kRowGroup; ++r) {
          VecF q = broadcast(query[r * stride_ + i]);
          sum[r][0] = multiply_add(q, low, sum[r][0]);
          sum[r][1] = multiply_add(q, high, sum[r][1]);
        }
      }
      for (int r = 0; r < kRowGroup; ++r) {
        store(s_.scores + (row + r) * kKeys + j, sum[r][0]);
        store(s_.scores + (row + r) * kKeys + j + kLanes, sum[r][1]);
      }
    }
  }

  // Folds a tile's visible keys into a row's softmax and weighted sum.
  void add_tile(int64_t row, int64_t num_visible) {
    float* scores = s_.scores + row * kKeys;
    VecF tile_most = broadcast(-__builtin_inff());
    for (int j = 0; j < kKeys; j += kLanes) {
      VecI is_visible = lane_numbers() + j < static_cast<int32_t>(num_visible);
      VecF score = is_visible ? load(scores + j) : broadcast(-__builtin_inff());
      store(scores + j, score);
      tile_most = max(tile_most, score);
    }
    float most = max_lanes(max(tile_most, broadcast(s_.most[row])));
    VecF tile_total = {};
    for (int j = 0; j < kKeys; j += kLanes) {
      VecF weight = exp(load(scores + j) - most);
      store(scores + j, weight);
      tile_total += weight;
    }
    float decay = exp(broadcast(s_.most[row] - most))[0];
    s_.total[row] = s_.total[row] * decay + sum_lanes(tile_total);
    s_.most[row] = most;
    add_values(row, num_visible, decay);
  }

  void add_values(int64_t row, int64_t num_visible, float decay) {
    int64_t i = 0;
    for (; i + 4 * kLanes <= stride_; i += 4 * kLanes) add_columns<4>(row, i, num_visible, decay);
    for (; i < stride_; i += kLanes) add_columns<1>(row, i, num_visible, decay);
  }

  template <int kVectors>
  void add_columns(int64_t row, int64_t column, int64_t num_visible, float decay) {
    float* sums = s_.sums + row * stride_ + column;
    VecF sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = load(sums + v * kLanes) * decay;
    for (int64_t j = 0; j < num_visible; ++j) {
      VecF weight = broadcast(s_.scores[row * kKeys + j]);
      const float* value = s_.values + j * stride_ + column;
      for (int v = 0; v < kVectors; ++v) {
        sum[v] = multiply_add(weight, load(value + v * kLanes), sum[v]);
      }
    }
    for (int v = 0; v < kVectors; ++v) store(sums + v * kLanes, sum[v]);
  }

  void store_rows() {
    for (int64_t row = 0; row < task_.num_rows; ++row) {
      T* out = static_cast<T*>(args_.out) + (token(row) * args_.num_heads + head(row)) * dim_;
      for (int64_t i = 0; i < dim_; i += kLanes) {
        store(out + i, load(s_.sums + row * stride_ + i) / s_.total[row], dim_ - i);
      }
    }
  }

  const AttentionArgs& args_;
  const AttentionTask& task_;
  const int64_t dim_;
  const int64_t stride_;
  const int64_t group_;
  const int64_t first_token_;
  Scratch s_;
};

template <class T>
void attend(const AttentionArgs& args) {
  parallel_for(args.pool, args.num_tasks,
               [&](int64_t i) { Attention<T>(args, args.tasks[i]).run(); });
}

}  // namespace

void paged_attention(DType dtype, const AttentionArgs& args) {
  auto run = dtype == DType::kFloat32 ? attend<float> : attend<BFloat16>;
  run(args);
}

}  // namespace KERNEL_ISA
