#include "decoder.h"

#include <algorithm>

#include "quantized.h"

namespace {

int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

int64_t qkv_width(const DecoderShape& s) { return (s.num_heads + 2 * s.num_kv_heads) * s.head_dim; }

}  // namespace

DecoderRun::DecoderRun(const Team& team, const DecoderShape& shape, DType dtype,
                       const Batch& batch, const Cache& cache)
    : team_(team),
      shape_(shape),
      dtype_(dtype),
      num_tokens_(batch.num_tokens),
      batch_(batch),
      cache_(cache),
      plan_(batch, shape.num_heads, shape.num_kv_heads, team.num_threads) {
  const int64_t attended = shape.num_heads * shape.head_dim;
  const int64_t narrow = std::max(attended, shape.intermediate_size);
  wide_ = allocate(num_tokens_ * size_of(dtype) *
                   std::max(qkv_width(shape), 2 * shape.intermediate_size));
  narrow_ = allocate(num_tokens_ * size_of(dtype) * narrow);
  scratch_ = allocate(linear_scratch_bytes(num_tokens_, std::max(shape.hidden_size, narrow)));
}

DecoderRun::DecoderRun(const Team& team, const DecoderShape& shape, DType dtype,
                       int64_t num_tokens)
    : team_(team),
      shape_(shape),
      dtype_(dtype),
      num_tokens_(num_tokens),
      plan_(Batch{}, shape.num_heads, shape.num_kv_heads, 1),
      wide_(allocate(num_tokens * size_of(dtype) * 2 * shape.intermediate_size)),
      narrow_(allocate(num_tokens * size_of(dtype) * shape.intermediate_size)),
      scratch_(allocate(linear_scratch_bytes(
          num_tokens, std::max(shape.hidden_size, shape.intermediate_size)))) {}

void DecoderRun::layers(const DecoderLayer* const* layers, int64_t count, void* hidden) {
  const Buffer x = allocate(num_tokens_ * shape_.hidden_size * size_of(dtype_));
  for (int64_t i = 0; i < count; ++i) {
    attention(*layers[i], i == 0 ? nullptr : x.get(), hidden, x.get());
    mlp(*layers[i], x.get(), hidden, x.get());
  }
  if (count > 0) {
    team_.table.add(dtype_, rows(x.get(), shape_.hidden_size), hidden,
                    team_.threads(num_tokens_ * shape_.hidden_size, kMinElements));
  }
}

void DecoderRun::attention(const DecoderLayer& layer, const void* x, void* residual, void* out) {
  const DecoderWeights& w = layer.weights;
  const DecoderShape& s = shape_;
  void* qkv = wide_.get();
  void* keys = cache_.keys(layer.index);
  void* values = cache_.values(layer.index);
  normed_linear(w.qkv, w.input_norm, x, residual, qkv, false);
  team_.table.rope_and_store(
      dtype_, {rows(qkv, qkv_width(s)), w.qkv_bias, s.num_heads, s.num_kv_heads, s.head_dim,
               batch_.positions, s.cos_sin, keys, values, batch_.slots, cache_.block_size,
               cache_.block_stride, team_.threads(num_tokens_ * qkv_width(s), kMinElements)});
  AttentionArgs args = plan_.args(batch_, cache_, layer.index);
  args.query = qkv;
  args.query_stride = qkv_width(s);
  args.out = narrow_.get();
  args.scale = s.scale;
  args.pool = team_.threads(plan_.work() * s.head_dim, kMinMultiplies);
  team_.table.paged_attention(dtype_, args);
  linear(w.output, narrow_.get(), out);
}

void DecoderRun::mlp(const DecoderLayer& layer, const void* x, void* residual, void* out) {
  const DecoderWeights& w = layer.weights;
  const int64_t size = shape_.intermediate_size;
  if (size % kQuantizedPanel == 0 && size % team_.table.panel_width() == 0) {
    normed_linear(w.gate_up, w.mlp_norm, x, residual, narrow_.get(), true);
  } else {
    normed_linear(w.gate_up, w.mlp_norm, x, residual, wide_.get(), false);
    team_.table.silu_and_mul(dtype_, rows(wide_.get(), 2 * size), narrow_.get(),
                             team_.threads(num_tokens_ * 2 * size, kMinElements));
  }
  linear(w.down, narrow_.get(), out);
}

void DecoderRun::linear(const Weight& weight, const void* x, void* out) {
  const int64_t work = num_tokens_ * weight.in_features * weight.out_features;
  LinearArgs args = {rows(x, weight.in_features), rows(out, weight.out_features), weight.data,
                     scratch_.get(), team_.threads(work, kMinMultiplies)};
  args.format = weight.format;
  team_.table.linear(dtype_, args);
}

void DecoderRun::normed_linear(const Weight& weight, const void* norm, const void* x,
                               void* residual, void* out, bool is_gated) {
  const int64_t work = num_tokens_ * weight.in_features * weight.out_features;
  const int64_t columns = is_gated ? weight.out_features / 2 : weight.out_features;
  team_.table.linear(dtype_,
                     {rows(residual, weight.in_features), rows(out, columns), weight.data,
                      scratch_.get(), team_.threads(work, kMinMultiplies), norm, x,
                      shape_.norm_eps, is_gated, weight.format});
}

Matrix DecoderRun::rows(const void* data, int64_t columns) const {
  return {const_cast<void*>(data), num_tokens_, columns, columns};
}
