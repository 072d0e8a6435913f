// Quantizes weights and packs them into the panels of quantized.h.
//
// Columns lie in lanes and k follows k, each operation rounded by itself, so that every instruction
// set gets the same weights. kernels/quantization.py says which.
#include "quantized.h"

#include "simd.h"

namespace KERNEL_ISA {
namespace {

constexpr int64_t kChunk = 64;  // of k, a whole number of groups
constexpr float kLeastScale = 1e-30f;
constexpr float kNaN = __builtin_nanf("");
static_assert(kChunk % kGroup == 0 && kQuantizedPanel % kLanes == 0);

constexpr int kVectors = kQuantizedPanel / kLanes;
constexpr int kRowBytes = kQuantizedPanel * 4;

typedef float Columns[kChunk][kQuantizedPanel];

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Loads a panel's k from start on; what the weight doesn't have is 0.
template <class T>
void load_chunk(const Matrix& weight, int64_t first, int64_t start, int64_t count, Columns& out) {
  const int64_t num_columns = min(kQuantizedPanel, weight.rows - first);
  const int64_t num_valid = min(count, weight.columns - start);
  for (int64_t column = 0; column < kQuantizedPanel; ++column) {
    const T* row = static_cast<const T*>(weight.data) + (first + column) * weight.stride + start;
    const int64_t valid = column < num_columns ? num_valid : 0;
    for (int64_t k = 0; k < valid; ++k) out[k][column] = to_float(row[k]);
    for (int64_t k = valid > 0 ? valid : 0; k < count; ++k) out[k][column] = 0.0f;
  }
}

// Stores the i-th vector of a row of words.
template <class V>
inline void put(V words, uint8_t* row, int i) {
  std::memcpy(row + i * kLanes * 4, &words, sizeof words);
}

inline VecF magnitude(VecF v) { return (VecF)((VecU)v & 0x7fffffffu); }

inline VecF nearest_integer(VecF v) {
  const VecF shifter = broadcast(12582912.0f);  // 1.5 * 2^23
  return v + shifter - shifter;
}

inline VecU whole_number(VecF integer, int offset) {
  return (VecU)(__builtin_convertvector(integer, VecI) + offset);
}

// 1 / scale where there is one.
inline VecF inverse_of(VecF scale) {
  return magnitude(scale) > kLeastScale ? 1.0f / scale : VecF{};
}

// Of one vector of columns: the largest magnitudes, and NaN where not all is finite.
struct Extent {
  VecF most = {}, strange = {};

  void add(VecF v) {
    strange += v - v;
    most = max(most, magnitude(v));
  }

  // What a step is worth if so many make the largest.
  VecF unit(float steps) const {
    VecF unit = most > kLeastScale ? most / steps : VecF{};
    return strange == strange ? unit : broadcast(kNaN);
  }
};

template <class T>
void pack_int8(const Matrix& weight, int64_t first, uint8_t* panel) {
  const int64_t depth = quantized_depth(WeightFormat::kInt8, weight.columns);
  Columns chunk;
  Extent extents[kVectors];
  for (int64_t start = 0; start < depth; start += kChunk) {
    load_chunk<T>(weight, first, start, kChunk, chunk);
    for (int64_t k = 0; k < kChunk; ++k) {
      for (int i = 0; i < kVectors; ++i) extents[i].add(load(chunk[k] + i * kLanes));
    }
  }
  for (int i = 0; i < kVectors; ++i) put(extents[i].unit(127.0f), panel, i);
  for (int64_t start = 0; start < depth; start += kChunk) {
    load_chunk<T>(weight, first, start, kChunk, chunk);
    for (int64_t k = 0; k < kChunk; k += 4) {
      for (int i = 0; i < kVectors; ++i) {
        VecF scale = load_as<VecF>(panel + i * kLanes * 4);
        VecU word = {};
        for (int byte = 0; byte < 4; ++byte) {
          VecF v = load(chunk[k + byte] + i * kLanes) / scale;
          word |= whole_number(scale > 0.0f ? nearest_integer(v) : VecF{}, 128) << (8 * byte);
        }
        put(word, panel + (1 + (start + k) / 4) * kRowBytes, i);
      }
    }
  }
}

struct Affine {
  VecF scale, offset;

  VecF quantize(VecF v) const {
    v = nearest_integer((v - offset) * inverse_of(scale));
    v = v < -8.0f ? broadcast(-8.0f) : v;
    return v > 7.0f ? broadcast(7.0f) : v;
  }
};

// Scale and offset that leave little squared error. Each try begins with a part of the range, and
// gets twice the least squares of what is rounded with the ones before.
Affine fit_group(const float* group) {
  VecF least = load(group), most = least, values[kGroup], sum = {};
  for (int64_t k = 1; k < kGroup; ++k) {
    VecF v = load(group + k * kQuantizedPanel);
    least = v < least ? v : least;
    most = max(v, most);
  }
  const VecF middle = (least + most) * 0.5f, half = (most - least) * 0.5f;
  for (int64_t k = 0; k < kGroup; ++k) {
    values[k] = load(group + k * kQuantizedPanel) - middle;
    sum += values[k];
  }
  const VecF mean = sum * (1.0f / kGroup);
  Affine best = {VecF{}, mean};
  VecF best_gain = {};
  const float parts[] = {1.0f, 0.92f, 0.84f, 0.76f};
  for (float part : parts) {
    Affine tried = {half * part * (2.0f / 15.0f), {}};
    tried.offset = tried.scale * 0.5f;
    for (int round = 0; round < 2; ++round) {
      VecF q_sum = {}, squares = {}, products = {};
      for (int64_t k = 0; k < kGroup; ++k) {
        VecF q = tried.quantize(values[k]);
        q_sum += q;
        squares += q * q;
        products += q * values[k];
      }
      const VecF q_mean = q_sum * (1.0f / kGroup);
      const VecF spread = squares - q_sum * q_mean, shared = products - q_sum * mean;
      tried.scale = spread > 0.0f && shared > 0.0f ? shared / spread : VecF{};
      tried.offset = mean - tried.scale * q_mean;
      const VecF gain = shared * tried.scale;
      best.scale = gain > best_gain ? tried.scale : best.scale;
      best.offset = gain > best_gain ? tried.offset : best.offset;
      best_gain = max(gain, best_gain);
    }
  }
  return {best.scale, middle + best.offset};
}

// Where an int4 panel has a group's words.
uint8_t* group_at(uint8_t* panel, int64_t start) {
  return panel + 2 * kRowBytes + start / kGroup * (kGroup / 8 * kRowBytes + 2 * kQuantizedPanel);
}

// Multiples of a unit nearest to the values, and their bytes.
VecF round_to_unit(VecF values, VecF unit, uint8_t* bytes) {
  VecF whole = nearest_integer(values * inverse_of(unit));
  VecI integers = __builtin_convertvector(unit == unit ? whole : VecF{}, VecI);
  for (int lane = 0; lane < kLanes; ++lane) bytes[lane] = static_cast<uint8_t>(integers[lane]);
  return __builtin_convertvector(integers, VecF) * unit;
}

// Packs one vector of a group's columns, whose fitted scales and offsets lie where words will.
void pack_group(const float* group, const uint8_t* units, uint8_t* to, int i) {
  uint8_t* bytes = to + kGroup / 8 * kRowBytes + i * kLanes;
  const uint8_t* fitted = to + i * kLanes * 4;
  Affine affine;
  affine.scale = round_to_unit(load_as<VecF>(fitted), load_as<VecF>(units), bytes);
  affine.offset = round_to_unit(load_as<VecF>(fitted + kRowBytes),
                                load_as<VecF>(units + kRowBytes), bytes + kQuantizedPanel);
  const VecI is_number = affine.scale == affine.scale;
  for (int64_t k = 0; k < kGroup; k += 8) {
    VecU word = {};
    for (int byte = 0; byte < 4; ++byte) {
      for (int half = 0; half < 2; ++half) {
        VecF q = affine.quantize(load(group + (k + 4 * half + byte) * kQuantizedPanel));
        word |= whole_number(is_number ? q : VecF{}, 8) << (8 * byte + 4 * half);
      }
    }
    put(word, to + k / 8 * kRowBytes, i);
  }
}

template <class T>
void pack_int4(const Matrix& weight, int64_t first, uint8_t* panel) {
  const int64_t depth = quantized_depth(WeightFormat::kInt4, weight.columns);
  Columns chunk;
  Extent scales[kVectors], offsets[kVectors];
  // Words have room for what is fitted until they are packed.
  for (int64_t start = 0; start < depth; start += kGroup) {
    load_chunk<T>(weight, first, start, kGroup, chunk);
    for (int i = 0; i < kVectors; ++i) {
      Affine fitted = fit_group(&chunk[0][i * kLanes]);
      for (int64_t k = 0; k < kGroup; ++k) {
        VecF v = load(chunk[k] + i * kLanes);
        scales[i].strange += v - v;
      }
      scales[i].add(fitted.scale);
      offsets[i].add(fitted.offset);
      put(fitted.scale, group_at(panel, start), i);
      put(fitted.offset, group_at(panel, start) + kRowBytes, i);
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    put(scales[i].unit(255.0f), panel, i);
    put(offsets[i].unit(127.0f), panel + kRowBytes, i);
  }
  for (int64_t start = 0; start < depth; start += kGroup) {
    load_chunk<T>(weight, first, start, kGroup, chunk);
    for (int i = 0; i < kVectors; ++i) {
      pack_group(&chunk[0][i * kLanes], panel + i * kLanes * 4, group_at(panel, start), i);
    }
  }
}

template <class T>
void pack(WeightFormat format, const Matrix& weight, uint8_t* packed, ThreadPool* pool) {
  const int64_t panel_bytes = quantized_panel_bytes(format, weight.columns);
  auto pack_panel = format == WeightFormat::kInt8 ? pack_int8<T> : pack_int4<T>;
  parallel_for(pool, ceil_div(weight.rows, kQuantizedPanel), [&](int64_t panel) {
    pack_panel(weight, panel * kQuantizedPanel, packed + panel * panel_bytes);
  });
}

}  // namespace

void pack_quantized(DType dtype, WeightFormat format, const Matrix& weight, void* packed,
                    ThreadPool* pool) {
  auto run = dtype == DType::kFloat32 ? pack<float> : pack<BFloat16>;
  run(format, weight, static_cast<uint8_t*>(packed), pool);
}

}  // namespace KERNEL_ISA
