// A ragged batch and the layers of a KV cache, checked, and cut into tasks of attention.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"

// A kv_cache[num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim].
struct Cache {
  char* data;
  int64_t num_blocks, num_layers, num_kv_heads, block_size, head_dim;
  int64_t block_stride;  // elements
  int64_t element_bytes;

  char* keys(int64_t layer) const { return half(2 * layer); }
  char* values(int64_t layer) const { return half(2 * layer + 1); }

 private:
  char* half(int64_t index) const {
    return data + index * num_kv_heads * block_size * head_dim * element_bytes;
  }
};

// The addresses of a RaggedBatch, and its sizes.
struct Batch {
  const int32_t* positions;
  const int64_t* slots;
  const int32_t* query_start;
  const int32_t* context_lens;
  const int32_t* block_tables;
  int64_t num_tokens;
  int64_t num_sequences;
  int64_t max_blocks;
};

// Throw std::invalid_argument or std::out_of_range where a batch, or indices in general, would read
// or write memory that isn't their own.
void check_batch(const Batch& batch, const Cache& cache);
void check_slots(const int64_t* slots, int64_t count, const Cache& cache);
template <class T>
void check_below(const T* values, int64_t count, int64_t bound, const char* what);

// The tasks of one attention call; the same for every layer of a step.
class AttentionPlan {
 public:
  // Cuts contexts into segments where there would else be too few tasks for so many threads.
  AttentionPlan(const Batch& batch, int64_t num_heads, int64_t num_kv_heads, int num_threads);

  // The tasks as arguments; queries, output, scale and threads are left to be filled in.
  AttentionArgs args(const Batch& batch, const Cache& cache, int64_t layer) const;

  // Multiply-adds for each element of a head, see kMinMultiplies.
  int64_t work() const { return work_; }

 private:
  void cut_segments(const Batch& batch, int64_t group);

  const int64_t num_heads_;
  std::vector<AttentionTask> tasks_, folds_;
  std::unique_ptr<float[]> partials_;
  int64_t work_ = 0;
};
