// Causal attention over paged keys and values, with an online softmax over tiles of keys.
//
// A row is one query head of one token. The context is walked in segments of kSegment keys, and
// these in tiles of kKeys, from position 0 up to a row's own, whatever the block size and whichever
// rows share a tile; scores are chains over head_dim, a segment's sums are chains over its keys, and
// segments are folded together in order. So a row's arithmetic depends on its position alone, also
// where the segments of a long context are different threads' work. In bfloat16, two neighbours in
// head_dim, or in the keys, are one step of a chain, and weights are rounded to bfloat16. Source:
// FlashAttention (Dao et al., 2022), algorithm 1; Flash-Decoding (Dao et al., 2023).
#include "simd.h"

namespace KERNEL_ISA {
namespace {

constexpr int kKeys = 64;
constexpr int kRowGroup = 4;  // rows that share a pass over the keys
constexpr int kKeyVectors = kKeys / kLanes < 4 ? kKeys / kLanes : 4;
constexpr int kValueVectors = kLanes == 16 ? 4 : 2;
static_assert(kKeys % (kKeyVectors * kLanes) == 0 && kSegment % kKeys == 0);

// What one task keeps; strides are whole numbers of vectors. A step is 4 bytes, see simd.h.
template <class T>
struct Scratch {
  alignas(64) T query[kAttentionRows * kMaxHeadDim];
  alignas(64) uint32_t keys[kMaxHeadDim * kKeys];    // [steps of head_dim][kKeys]
  alignas(64) uint32_t values[kKeys * kMaxHeadDim];  // [steps of keys][head_dim]
  alignas(64) float scores[kAttentionRows * kKeys];
  alignas(64) T weights[kAttentionRows * kKeys];
  alignas(64) float sums[kAttentionRows * kPartialStride];    // a segment's
  alignas(64) float folded[kAttentionRows * kPartialStride];  // of all segments until now
  int64_t position[kAttentionRows];
};

// One step of kLanes columns: an element of each in float32, of two rows in bfloat16.
inline VecU interleave_rows(const float* const* rows, int64_t column, int64_t n) {
  return (VecU)load(rows[0] + column, n);
}

inline VecU interleave_rows(const BFloat16* const* rows, int64_t column, int64_t n) {
  VecU first = (VecU)load(rows[0] + column, n) >> 16;
  return first | (VecU)load(rows[1] + column, n);
}

// Stores the steps of whole rows of that many columns.
template <class T>
inline void store_steps(const T* const* rows, int64_t columns, uint32_t* to) {
  int64_t i = 0;
#if defined(__AVX512BW__)
  if constexpr (kStep<T> == 2) {
    alignas(64) static constexpr uint16_t kLow[2 * kLanes] = {
        0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (; i + 2 * kLanes <= columns; i += 2 * kLanes) {
      __m512i first = load_as<__m512i>(rows[0] + i), second = load_as<__m512i>(rows[1] + i);
      store_units(to + i, (VecU)_mm512_permutex2var_epi16(first, low, second));
      store_units(to + i + kLanes, (VecU)_mm512_permutex2var_epi16(first, high, second));
    }
  }
#endif
  for (; i < columns; i += kLanes) store_units(to + i, interleave_rows(rows, i, columns - i));
}

// A row of a segment's sums, or of all: the greatest score, the total of weights, then head_dim.
inline float& most(float* row) { return row[0]; }
inline float& total(float* row) { return row[1]; }
inline float* sums(float* row) { return row + kPartialHeader; }

void fold(float* row, float* segment, int64_t stride) {
  float greatest = max(broadcast(most(row)), broadcast(most(segment)))[0];
  float keep = exp(broadcast(most(row) - greatest))[0];
  float take = exp(broadcast(most(segment) - greatest))[0];
  most(row) = greatest;
  total(row) = total(row) * keep + total(segment) * take;
  for (int64_t i = 0; i < stride; i += kLanes) {
    VecF kept = load(sums(row) + i) * keep;
    store(sums(row) + i, multiply_add(load(sums(segment) + i), broadcast(take), kept));
  }
}

template <class T>
class Attention {
 public:
  // The next task is likely the same thread's; or null.
  Attention(const AttentionArgs& args, const AttentionTask& task, const AttentionTask* next)
      : args_(args),
        task_(task),
        next_(next),
        dim_(args.head_dim),
        steps_(ceil_div(args.head_dim, kStep<T>)),
        stride_(ceil_div(args.head_dim, kLanes) * kLanes),
        query_stride_(steps_ * kStep<T>),
        group_(args.num_heads / args.num_kv_heads),
        first_token_(args.query_start[task.sequence]) {}

  // Covers all segments, or one and leaves its sums in the task's partial sums.
  void run() {
    load_queries();
    const int64_t num_keys = num_keys_of(task_);
    if (task_.partial != nullptr) {
      add_segment(task_.segment * kSegment, num_keys);
      return std::memcpy(task_.partial, s_.sums, task_.num_rows * kRowBytes), void();
    }
    for (int64_t first = 0; first < num_keys; first += kSegment) {
      add_segment(first, num_keys);
      if (first == 0) {
        std::memcpy(s_.folded, s_.sums, task_.num_rows * kRowBytes);
      } else {
        fold_segment(first, s_.sums);
      }
    }
    store_rows();
  }

  // Folds the partial sums that tasks left for the same rows, one segment after the other.
  void fold_partials() {
    load_positions();
    const int64_t num_segments = ceil_div(num_keys_of(task_), kSegment);
    std::memcpy(s_.folded, task_.partial, task_.num_rows * kRowBytes);
    for (int64_t segment = 1; segment < num_segments; ++segment) {
      fold_segment(segment * kSegment,
                   task_.partial + segment * task_.num_rows * kPartialStride);
    }
    store_rows();
  }

 private:
  static constexpr int64_t kRowBytes = kPartialStride * sizeof(float);

  int64_t token(int64_t row) const { return first_token_ + (task_.first_row + row) / group_; }

  // How many keys a task's last row sees.
  int64_t num_keys_of(const AttentionTask& task) const {
    int64_t last_row = (task.first_row + task.num_rows - 1) / group_;
    return args_.positions[args_.query_start[task.sequence] + last_row] + 1;
  }

  int64_t head(int64_t row) const {
    return task_.kv_head * group_ + (task_.first_row + row) % group_;
  }

  void load_positions() {
    for (int64_t row = 0; row < task_.num_rows; ++row) {
      s_.position[row] = args_.positions[token(row)];
    }
  }

  void load_queries() {
    load_positions();
    for (int64_t row = 0; row < task_.num_rows; ++row) {
      const T* query = static_cast<const T*>(args_.query) + token(row) * args_.query_stride +
                       head(row) * dim_;
      T* to = s_.query + row * query_stride_;
      std::memcpy(to, query, dim_ * sizeof(T));
      for (int64_t i = dim_; i < query_stride_; ++i) to[i] = T{};
    }
  }

  void fold_segment(int64_t first, float* segment) {
    for (int64_t row = 0; row < task_.num_rows; ++row) {
      if (s_.position[row] < first) continue;
      fold(s_.folded + row * kPartialStride, segment + row * kPartialStride, stride_);
    }
  }

  void add_segment(int64_t first, int64_t num_keys) {
    for (int64_t row = 0; row < task_.num_rows; ++row) {
      float* to = s_.sums + row * kPartialStride;
      most(to) = -__builtin_inff();
      total(to) = 0.0f;
      for (int64_t i = 0; i < stride_; i += kLanes) store(sums(to) + i, VecF{});
    }
    const int64_t end = min(first + kSegment, num_keys);
    int64_t start = 0;  // rows before it see none of the tile
    for (; first < end; first += kKeys) {
      while (s_.position[start] < first) ++start;
      load_tile(first, min(kKeys, end - first), num_keys);
      for (int64_t row = start; row < task_.num_rows; row += kRowGroup) {
        score_rows(row, min(kRowGroup, task_.num_rows - row));
      }
      for (int64_t row = start; row < task_.num_rows; row += kRowGroup) {
        add_tile(row, min(kRowGroup, task_.num_rows - row), first);
      }
    }
  }

  // Calls visit(number, place, count) for each run of a task's keys that lie together, of those from
  // first on; place is where the run's first head is, from block 0 of the layer's keys or values.
  template <class Visit>
  __attribute__((always_inline)) void visit_runs(const AttentionTask& task, int64_t first,
                                                 int64_t num_keys, const Visit& visit) const {
    const int32_t* table = args_.block_tables + task.sequence * args_.max_blocks;
    int64_t block = first / args_.block_size, offset = first % args_.block_size;
    for (int64_t j = 0, count; j < num_keys; j += count, ++block, offset = 0) {
      count = min(args_.block_size - offset, num_keys - j);
      int64_t row = task.kv_head * args_.block_size + offset;
      visit(j, table[block] * args_.block_stride + row * dim_, count);
    }
  }

  // Asks for keys and values before they are used, since a context's blocks lie anywhere: in the L2
  // cache, as many as the L1 cache would take too few requests at a time. Inlined by force: GCC
  // takes a function that only prefetches for one without effect, and drops its calls.
  __attribute__((always_inline)) void fetch(const AttentionTask& task, int64_t first,
                                            int64_t num_keys) const {
    visit_runs(task, first, num_keys,
               [&](int64_t, int64_t place, int64_t count) __attribute__((always_inline)) {
                 auto* keys = static_cast<const T*>(args_.keys) + place;
                 auto* values = static_cast<const T*>(args_.values) + place;
                 for (int64_t i = 0; i < count * dim_; i += 64 / sizeof(T)) {
                   __builtin_prefetch(keys + i, 0, 2);
                   __builtin_prefetch(values + i, 0, 2);
                 }
               });
  }

  // Loads a tile of keys, transposed, and of values; what is past num_keys becomes zeros. Meanwhile
  // asks for the tile that comes after it, of end keys or of the next task's.
  void load_tile(int64_t first, int64_t num_keys, int64_t end) {
    alignas(64) static constexpr T kZeros[kMaxHeadDim] = {};
    const T* keys[kKeys];
    const T* values[kKeys];
    visit_runs(task_, first, num_keys, [&](int64_t j, int64_t place, int64_t count) {
      for (int64_t stop = j + count; j < stop; ++j, place += dim_) {
        keys[j] = static_cast<const T*>(args_.keys) + place;
        values[j] = static_cast<const T*>(args_.values) + place;
      }
    });
    for (int64_t j = num_keys; j < kKeys; ++j) keys[j] = values[j] = kZeros;
    const AttentionTask* coming = &task_;
    int64_t there = first + kKeys;
    if (there >= end && next_ != nullptr) {
      coming = next_;
      there = next_->segment * kSegment;
      end = num_keys_of(*next_);
    }
    num_loaded_ = ceil_div(num_keys, kLanes) * kLanes;
    for (int64_t j = 0; j < num_loaded_; j += kLanes) {
      fetch(*coming, there + j, min(kLanes, end - there - j));
      load_keys(keys + j, j);
      for (int64_t i = j; i < min(j + kLanes, num_keys); i += kStep<T>) {
        store_steps(values + i, dim_, s_.values + i / kStep<T> * stride_);
      }
    }
  }

  void load_keys(const T* const* keys, int64_t j) {
    for (int64_t i = 0; i < steps_; i += kLanes) {
      VecU square[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        square[lane] = load_units(keys[lane] + i * kStep<T>, dim_ - i * kStep<T>);
      }
      transpose(square);
      for (int lane = 0; lane < kLanes; ++lane) {
        store_units(s_.keys + (i + lane) * kKeys + j, square[lane]);
      }
    }
  }

  void score_rows(int64_t row, int64_t num_rows) {
    for (int64_t j = 0; j < num_loaded_; j += kKeyVectors * kLanes) {
      switch (num_rows) {
        case 1: score_keys<1>(row, j); break;
        case 2: score_keys<2>(row, j); break;
        case 3: score_keys<3>(row, j); break;
        default: score_keys<kRowGroup>(row, j);
      }
    }
  }

  template <int kRows>
  void score_keys(int64_t row, int64_t j) {
    const T* query = s_.query + row * query_stride_;
    VecF sum[kRows][kKeyVectors] = {};
    for (int64_t i = 0; i < steps_; ++i) {
      const T* keys = reinterpret_cast<const T*>(s_.keys + i * kKeys + j);
      for (int v = 0; v < kKeyVectors; ++v) {
        auto key = load_steps(keys + v * kLanes * kStep<T>);
        for (int r = 0; r < kRows; ++r) {
          auto q = broadcast_step(query + r * query_stride_ + i * kStep<T>);
          sum[r][v] = multiply_add(key, q, sum[r][v]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      float* scores = s_.scores + (row + r) * kKeys + j;
      for (int v = 0; v < kKeyVectors; ++v) store(scores + v * kLanes, sum[r][v] * args_.scale);
    }
  }

  // Folds a tile's visible keys into the softmax and weighted sums of some rows: of all at once if
  // they see the same keys. A weight of zero would not do: what a row doesn't see may be infinite.
  void add_tile(int64_t row, int64_t num_rows, int64_t first) {
    const int64_t least = min(kKeys, s_.position[row] + 1 - first);
    const int64_t most = min(kKeys, s_.position[row + num_rows - 1] + 1 - first);
    if (least != most) {
      for (int64_t r = row; r < row + num_rows; ++r) add_tile(r, 1, first);
      return;
    }
    float decay[kRowGroup];
    for (int64_t r = 0; r < num_rows; ++r) decay[r] = weigh_keys(row + r, most);
    switch (num_rows) {
      case 1: return add_values<1>(row, most, decay);
      case 2: return add_values<2>(row, most, decay);
      case 3: return add_values<3>(row, most, decay);
      default: return add_values<kRowGroup>(row, most, decay);
    }
  }

  // Turns the scores of a row's visible keys into weights. Returns what the row's sums until now
  // are multiplied by.
  float weigh_keys(int64_t row, int64_t num_visible) {
    const float* scores = s_.scores + row * kKeys;
    float* to = s_.sums + row * kPartialStride;
    const VecF none = broadcast(-__builtin_inff());
    VecF visible[kKeys / kLanes];
    VecF tile_most = none;
    for (int64_t j = 0; j < num_visible; j += kLanes) {
      VecI is_visible = lane_numbers() + static_cast<int32_t>(j) < static_cast<int32_t>(num_visible);
      VecF score = is_visible ? load(scores + j) : none;
      visible[j / kLanes] = score;
      tile_most = max(tile_most, score);
    }
    float greatest = max_lanes(max(tile_most, broadcast(most(to))));
    VecF tile_total = {};
    for (int64_t j = 0; j < num_visible; j += kLanes) {
      VecF weight = exp(visible[j / kLanes] - greatest);
      store(s_.weights + row * kKeys + j, weight);
      tile_total += weight;
    }
    // exp(0) is exactly 1.
    float decay = most(to) == greatest ? 1.0f : exp(broadcast(most(to) - greatest))[0];
    total(to) = total(to) * decay + sum_lanes(tile_total);
    most(to) = greatest;
    return decay;
  }

  template <int kRows>
  void add_values(int64_t row, int64_t num_keys, const float* decay) {
    int64_t i = 0;
    for (; i + kValueVectors * kLanes <= stride_; i += kValueVectors * kLanes) {
      add_columns<kRows, kValueVectors>(row, i, num_keys, decay);
    }
    for (; i < stride_; i += kLanes) add_columns<kRows, 1>(row, i, num_keys, decay);
  }

  template <int kRows, int kVectors>
  void add_columns(int64_t row, int64_t column, int64_t num_keys, const float* decay) {
    float* to = sums(s_.sums + row * kPartialStride) + column;
    const T* weights = s_.weights + row * kKeys;
    VecF sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = load(to + r * kPartialStride + v * kLanes) * decay[r];
      }
    }
    int64_t j = 0;
    for (; j + kStep<T> <= num_keys; j += kStep<T>) {
      const uint32_t* value = s_.values + j / kStep<T> * stride_ + column;
      for (int v = 0; v < kVectors; ++v) {
        auto steps = load_steps(reinterpret_cast<const T*>(value + v * kLanes));
        for (int r = 0; r < kRows; ++r) {
          sum[r][v] = multiply_add(steps, broadcast_step(weights + r * kKeys + j), sum[r][v]);
        }
      }
    }
    if (j < num_keys) {  // one key of a pair
      const uint32_t* value = s_.values + j / kStep<T> * stride_ + column;
      for (int v = 0; v < kVectors; ++v) {
        VecU first = load_as<VecU>(value + v * kLanes) & 0xffffu;
        auto steps = load_steps(reinterpret_cast<const T*>(&first));
        for (int r = 0; r < kRows; ++r) {
          sum[r][v] = multiply_add(steps, broadcast_step(weights + r * kKeys + j), sum[r][v]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        store(to + r * kPartialStride + v * kLanes, sum[r][v]);
      }
    }
  }

  void store_rows() {
    for (int64_t row = 0; row < task_.num_rows; ++row) {
      T* out = static_cast<T*>(args_.out) + (token(row) * args_.num_heads + head(row)) * dim_;
      float* from = s_.folded + row * kPartialStride;
      for (int64_t i = 0; i < dim_; i += kLanes) {
        store(out + i, load(sums(from) + i) / total(from), dim_ - i);
      }
    }
  }

  const AttentionArgs& args_;
  const AttentionTask& task_;
  const AttentionTask* const next_;
  const int64_t dim_;
  const int64_t steps_;   // of head_dim
  const int64_t stride_;  // of head_dim, in whole vectors
  const int64_t query_stride_;
  const int64_t group_;
  const int64_t first_token_;
  int64_t num_loaded_ = 0;  // keys of the tile, in whole vectors
  Scratch<T> s_;
};

template <class T>
void attend(const AttentionArgs& args) {
  parallel_for(args.pool, args.num_tasks, [&](int64_t i) {
    Attention<T>(args, args.tasks[i], i + 1 < args.num_tasks ? args.tasks + i + 1 : nullptr).run();
  });
  parallel_for(args.pool, args.num_folds,
               [&](int64_t i) { Attention<T>(args, args.folds[i], nullptr).fold_partials(); });
}

}  // namespace

void paged_attention(DType dtype, const AttentionArgs& args) {
  auto run = dtype == DType::kFloat32 ? attend<float> : attend<BFloat16>;
  run(args);
}

}  // namespace KERNEL_ISA
