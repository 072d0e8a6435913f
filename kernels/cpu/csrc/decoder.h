// Decoder layers as one call: what kernels.composed does with single operations, fused.
#pragma once

#include "batch.h"
#include "team.h"

struct DecoderShape {
  int64_t hidden_size;
  int64_t intermediate_size;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  float norm_eps;
  float scale;  // of scores
  const float* cos_sin;
  int64_t max_model_len;
};

// A packed weight, see LinearArgs.
struct Weight {
  const void* data;
  int64_t out_features;
  int64_t in_features;
  WeightFormat format;
};

struct DecoderWeights {
  const void* input_norm;
  Weight qkv;
  const void* qkv_bias;  // or null
  Weight output;
  const void* mlp_norm;
  Weight gate_up;
  Weight down;
};

struct DecoderLayer {
  DType dtype;
  DecoderShape shape;
  DecoderWeights weights;
  int64_t index;  // in the KV cache
};

// Runs halves of layers over one batch; activations of one size are kept between them.
class DecoderRun {
 public:
  // The batch has been checked.
  DecoderRun(const Team& team, const DecoderShape& shape, DType dtype, const Batch& batch,
             const Cache& cache);
  // For layers' second halves alone.
  DecoderRun(const Team& team, const DecoderShape& shape, DType dtype, int64_t num_tokens);

  // x: what was computed last, added to the residual first, or null; then out.
  void attention(const DecoderLayer& layer, const void* x, void* residual, void* out);
  void mlp(const DecoderLayer& layer, const void* x, void* residual, void* out);
  void layers(const DecoderLayer* const* layers, int64_t count, void* hidden);

 private:
  void linear(const Weight& weight, const void* x, void* out);
  void normed_linear(const Weight& weight, const void* norm, const void* x, void* residual,
                     void* out, bool is_gated);
  Matrix rows(const void* data, int64_t columns) const;

  const Team& team_;
  const DecoderShape shape_;
  const DType dtype_;
  const int64_t num_tokens_;
  const Batch batch_{};
  const Cache cache_{};
  const AttentionPlan plan_;
  // Scratch: qkv or gate_up, attended or activated, and of products.
  Buffer wide_, narrow_, scratch_;
};
