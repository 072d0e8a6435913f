// Moving keys and values into and between blocks: bytes only, so one build for every processor.
#pragma once

#include "kernels.h"

struct StoreArgs {
  const char* key;
  const char* value;
  int64_t key_stride;  // between tokens, bytes
  int64_t value_stride;
  char* keys;  // block 0 of the layer
  char* values;
  int64_t block_stride;  // bytes
  int64_t num_kv_heads;
  int64_t block_size;
  int64_t head_bytes;
  const int64_t* slots;
  int64_t num_tokens;
  ThreadPool* pool;
};

struct CopyArgs {
  const char* source;
  char* target;
  int64_t source_stride;  // between blocks, bytes
  int64_t target_stride;
  int64_t block_bytes;
  const int64_t* pairs;  // (source block, target block)
  int64_t num_pairs;
  ThreadPool* pool;
};

void store_kv(const StoreArgs& args);
void copy_blocks(const CopyArgs& args);
