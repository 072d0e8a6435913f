#include "batch.h"

#include <stdexcept>
#include <string>

template <class T>
void check_below(const T* values, int64_t count, int64_t bound, const char* what) {
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= bound) {
      throw std::out_of_range(std::string(what) + " " + std::to_string(values[i]) +
                              " is outside 0 to " + std::to_string(bound - 1));
    }
  }
}

template void check_below(const int32_t*, int64_t, int64_t, const char*);
template void check_below(const int64_t*, int64_t, int64_t, const char*);

void check_slots(const int64_t* slots, int64_t count, const Cache& cache) {
  check_below(slots, count, cache.num_blocks * cache.block_size, "slot");
}

void check_batch(const Batch& b, const Cache& cache) {
  if (b.query_start[0] != 0 || b.query_start[b.num_sequences] != b.num_tokens) {
    throw std::invalid_argument("query_start must go from 0 to the number of query rows, " +
                                std::to_string(b.num_tokens));
  }
  for (int64_t sequence = 0; sequence < b.num_sequences; ++sequence) {
    int64_t first = b.query_start[sequence], end = b.query_start[sequence + 1];
    int64_t context = b.context_lens[sequence];
    int64_t num_used = ceil_div(context, cache.block_size);
    if (first > end || end > b.num_tokens || end - first > context || num_used > b.max_blocks) {
      throw std::invalid_argument("sequence " + std::to_string(sequence) + " has " +
                                  std::to_string(end - first) + " new tokens, a context of " +
                                  std::to_string(context) + " and room for " +
                                  std::to_string(b.max_blocks * cache.block_size));
    }
    for (int64_t token = first; token < end; ++token) {
      if (b.positions[token] != context - end + token) {
        throw std::invalid_argument("token " + std::to_string(token) + " is at position " +
                                    std::to_string(b.positions[token]) + ", not " +
                                    std::to_string(context - end + token));
      }
    }
    check_below(b.block_tables + sequence * b.max_blocks, num_used, cache.num_blocks, "block");
  }
}

// Loading a key and its value into a tile takes as long as so many scores of it.
constexpr int64_t kLoad = 8;

AttentionPlan::AttentionPlan(const Batch& b, int64_t num_heads, int64_t num_kv_heads,
                             int num_threads)
    : num_heads_(num_heads) {
  const int64_t group = num_heads / num_kv_heads;
  for (int64_t sequence = 0; sequence < b.num_sequences; ++sequence) {
    int64_t num_tokens = b.query_start[sequence + 1] - b.query_start[sequence];
    int64_t num_rows = num_tokens * group;
    work_ += b.context_lens[sequence] * (num_tokens * num_heads + kLoad * num_kv_heads);
    for (int64_t first = 0; first < num_rows; first += kAttentionRows) {
      int64_t rows = num_rows - first < kAttentionRows ? num_rows - first : kAttentionRows;
      for (int64_t head = 0; head < num_kv_heads; ++head) {
        tasks_.push_back({static_cast<int32_t>(sequence), static_cast<int32_t>(head), first, rows,
                          0, nullptr});
      }
    }
  }
  constexpr size_t kTasksPerThread = 8;
  if (num_threads > 1 && tasks_.size() < kTasksPerThread * num_threads) cut_segments(b, group);
}

void AttentionPlan::cut_segments(const Batch& b, int64_t group) {
  std::vector<AttentionTask> whole;
  whole.swap(tasks_);
  std::vector<int64_t> counts;
  int64_t num_partials = 0;
  for (const AttentionTask& task : whole) {
    int64_t last_token = b.query_start[task.sequence] + (task.first_row + task.num_rows - 1) / group;
    counts.push_back(ceil_div(b.positions[last_token] + 1, kSegment));
    if (counts.back() > 1) num_partials += counts.back() * task.num_rows;
  }
  partials_.reset(new float[num_partials * kPartialStride]);
  float* partial = partials_.get();
  for (size_t i = 0; i < whole.size(); ++i) {
    AttentionTask task = whole[i];
    if (counts[i] < 2) {
      tasks_.push_back(task);
      continue;
    }
    task.partial = partial;
    folds_.push_back(task);
    for (task.segment = 0; task.segment < counts[i]; ++task.segment) {
      tasks_.push_back(task);
      task.partial += task.num_rows * kPartialStride;
    }
    partial = task.partial;
  }
}

AttentionArgs AttentionPlan::args(const Batch& batch, const Cache& cache, int64_t layer) const {
  AttentionArgs args = {};
  args.keys = cache.keys(layer);
  args.values = cache.values(layer);
  args.block_stride = cache.block_stride;
  args.num_heads = num_heads_;
  args.num_kv_heads = cache.num_kv_heads;
  args.head_dim = cache.head_dim;
  args.block_size = cache.block_size;
  args.positions = batch.positions;
  args.query_start = batch.query_start;
  args.block_tables = batch.block_tables;
  args.max_blocks = batch.max_blocks;
  args.tasks = tasks_.data();
  args.num_tasks = static_cast<int64_t>(tasks_.size());
  args.folds = folds_.data();
  args.num_folds = static_cast<int64_t>(folds_.size());
  return args;
}
