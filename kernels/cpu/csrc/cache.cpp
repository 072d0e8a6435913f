#include "cache.h"

#include <cstring>

void store_kv(const StoreArgs& a) {
  parallel_for(a.pool, a.num_tokens, [&](int64_t token) {
    const char* key = a.key + token * a.key_stride;
    const char* value = a.value + token * a.value_stride;
    int64_t block = a.slots[token] / a.block_size * a.block_stride;
    int64_t offset = a.slots[token] % a.block_size;
    for (int64_t head = 0; head < a.num_kv_heads; ++head) {
      int64_t to = block + (head * a.block_size + offset) * a.head_bytes;
      std::memcpy(a.keys + to, key + head * a.head_bytes, a.head_bytes);
      std::memcpy(a.values + to, value + head * a.head_bytes, a.head_bytes);
    }
  });
}

void copy_blocks(const CopyArgs& a) {
  parallel_for(a.pool, a.num_pairs, [&](int64_t pair) {
    std::memcpy(a.target + a.pairs[2 * pair + 1] * a.target_stride,
                a.source + a.pairs[2 * pair] * a.source_stride, a.block_bytes);
  });
}
