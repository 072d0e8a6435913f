// x @ weight.T with integer weights.
//
// A row of x becomes integers of 16 bits relative to its largest magnitude, each the sum of a high
// byte times 256 and a low byte, both signed. Products of bytes are summed exactly, so neither rows,
// tiles, threads nor instruction sets matter to a sum; what follows is in float32, in one order,
// each multiplication and addition rounded by itself. Stored weights are positive (see
// quantized.h); what that adds to a sum follows from the row's own sum, and is there from the start.
#include "quantized.h"

#include "rows.h"

namespace KERNEL_ISA {
namespace {

typedef int8_t VecB __attribute__((vector_size(kLanes)));
typedef uint8_t VecUB __attribute__((vector_size(kLanes)));
typedef int16_t VecS __attribute__((vector_size(kLanes * 4)));

constexpr float kMost = 32639.0f;  // 127 * 256 + 127
constexpr float kLeast = 1e-30f;   // rows without anything larger are zeros
constexpr int kTileColumns = 2 * kLanes;
// A sequential stream of its own for each thread is fastest with so much of it on the way.
constexpr int64_t kAheadBytes = 2048;
constexpr int kStepBytes = kQuantizedPanel * 4;
static_assert(kQuantizedPanel % kTileColumns == 0 && kGroup % kLanes == 0);

inline VecI broadcast_word(const void* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return word - VecI{};
}

// Adds to each lane the products of 4 unsigned bytes and 4 signed ones.
inline VecI add_products(VecI sum, VecU w, VecI x) {
#if defined(__AVX512VNNI__)
  return (VecI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#else
  VecS even = (VecS)(w & 0x00ff00ff), odd = (VecS)((w >> 8) & 0x00ff00ff);
  VecS x_even = ((VecS)x << 8) >> 8, x_odd = (VecS)x >> 8;
#if defined(__AVX2__)
  sum += (VecI)_mm256_madd_epi16((__m256i)even, (__m256i)x_even);
  return sum + (VecI)_mm256_madd_epi16((__m256i)odd, (__m256i)x_odd);
#else
  VecI first = (VecI)(even * x_even), second = (VecI)(odd * x_odd);  // each within 16 bits
  return sum + ((first << 16) >> 16) + (first >> 16) + ((second << 16) >> 16) + (second >> 16);
#endif
#endif
}

inline VecF to_float(VecI v) { return __builtin_convertvector(v, VecF); }

// The processor sees a stream of its own accord as long as little is computed beside it.
template <int kRows>
inline void prefetch(const uint8_t* p) {
  if (kRows <= 2) return;
  __builtin_prefetch(p + kAheadBytes);
  if (kStepBytes > 64) __builtin_prefetch(p + kAheadBytes + 64);
}

inline int32_t add_lanes(VecI v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
#endif
}

// What one step of a row's integers is worth: NaN if not all of the row is finite.
template <class T>
float row_scale(const T* x, int64_t size) {
  // Magnitudes are in the order of their bits, with infinity and NaN last.
  VecI most = {};
  for (int64_t i = 0; i < size; i += kLanes) {
    VecI bits = (VecI)((VecU)load(x + i, size - i) & 0x7fffffffu);
    most = bits > most ? bits : most;
  }
  int32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits = most[i] > bits ? most[i] : bits;
  if (bits >= 0x7f800000) return __builtin_nanf("");
  float largest;
  std::memcpy(&largest, &bits, 4);
  return largest > kLeast ? largest / kMost : 0.0f;
}

// A tile of rows as integers: [k / 4][rows][high, low][4] bytes, [sums][rows] and [rows].
struct Rows {
  int8_t* bytes;
  int32_t* sums;  // of int8: high bytes' and low bytes'; of int4 pairs: -8 times, and as a float
  float* scales;
  int64_t count;
};

inline VecB to_bytes(VecI v) {
#if defined(__AVX512F__)
  return (VecB)_mm512_cvtepi32_epi8((__m512i)v);
#else
  return __builtin_convertvector(v, VecB);
#endif
}

inline void put_bytes(VecI high, VecI low, int8_t* to, int64_t stride) {
  VecB bytes[2] = {to_bytes(high), to_bytes(low)};
  for (int i = 0; i < kLanes / 4; ++i) {
    std::memcpy(to + i * stride, reinterpret_cast<char*>(&bytes[0]) + 4 * i, 4);
    std::memcpy(to + i * stride + 4, reinterpret_cast<char*>(&bytes[1]) + 4 * i, 4);
  }
}

inline void put_sums(WeightFormat format, int32_t high, int32_t low, int64_t group, int64_t row,
                     const Rows& to) {
  if (format == WeightFormat::kInt8) {
    to.sums[row] = high;
    to.sums[to.count + row] = low;
    return;
  }
  const int32_t sum = 256 * high + low;
  const float exact = static_cast<float>(sum);
  int32_t* sums = to.sums + (group * to.count + row) * 2;
  sums[0] = -8 * sum;
  std::memcpy(sums + 1, &exact, 4);
}

// Turns one row of x into integers, up to the depth.
template <class T, WeightFormat kFormat>
void convert_row(const T* x, int64_t size, int64_t depth, int64_t row, const Rows& to) {
  const float scale = row_scale(x, size);
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  const VecF shifter = broadcast(12582912.0f);  // 1.5 * 2^23: the sum's low bits are an integer
  const int64_t group = kFormat == WeightFormat::kInt8 ? depth : kGroup;
  to.scales[row] = scale;
  for (int64_t start = 0; start < depth; start += group) {
    VecI highs = {}, lows = {};
    for (int64_t k = start; k < start + group; k += kLanes) {
      VecF v = k < size ? load(x + k, size - k) : VecF{};
      VecI whole = (VecI)(v * inverse + shifter) - (VecI)shifter;
      // A row that isn't finite has a scale of NaN; its integers only mustn't overflow.
      whole = scale > 0.0f ? whole : VecI{};
      VecI high = (whole + 128) >> 8, low = whole - (high << 8);
      highs += high;
      lows += low;
      put_bytes(high, low, to.bytes + (k / 4 * to.count + row) * 8, to.count * 8);
    }
    put_sums(kFormat, add_lanes(highs), add_lanes(lows), start / kGroup, row, to);
  }
}

template <class T>
struct Tile {
  Rows x;
  const uint8_t* panel;
  int64_t column;  // the tile's first in the panel
  int64_t depth;
  T* out;
  int64_t out_stride;
  int64_t num_columns;
};

// The sums of rows' high bytes and of their low bytes, for two vectors of columns.
template <int kRows>
struct Sums {
  VecI high[kRows][2], low[kRows][2];

  inline void add(VecU first, VecU second, const int8_t* x) {
    for (int row = 0; row < kRows; ++row) {
      VecI x_high = broadcast_word(x + row * 8), x_low = broadcast_word(x + row * 8 + 4);
      high[row][0] = add_products(high[row][0], first, x_high);
      high[row][1] = add_products(high[row][1], second, x_high);
      low[row][0] = add_products(low[row][0], first, x_low);
      low[row][1] = add_products(low[row][1], second, x_low);
    }
  }
};

template <class T>
inline void store_row(const Tile<T>& tile, int row, VecF first, VecF second) {
  T* out = tile.out + row * tile.out_stride;
  store(out, first, tile.num_columns);
  if (tile.num_columns > kLanes) store(out + kLanes, second, tile.num_columns - kLanes);
}

template <class T, int kRows>
void multiply_int8(const Tile<T>& tile) {
  Sums<kRows> sums;
  for (int row = 0; row < kRows; ++row) {
    sums.high[row][0] = sums.high[row][1] = -128 * broadcast_word(tile.x.sums + row);
    sums.low[row][0] = sums.low[row][1] = -128 * broadcast_word(tile.x.sums + kRows + row);
  }
  const int8_t* x = tile.x.bytes;
  const uint8_t* words = tile.panel + tile.column * 4;
  const VecF scales[2] = {load_as<VecF>(words), load_as<VecF>(words + kLanes * 4)};
  for (int64_t k = 0; k < tile.depth; k += 4) {
    words += kStepBytes;
    prefetch<kRows>(words);
    sums.add(load_as<VecU>(words), load_as<VecU>(words + kLanes * 4), x);
    x += kRows * 8;
  }
  for (int row = 0; row < kRows; ++row) {
    VecF total[2];
    for (int i = 0; i < 2; ++i) {
      total[i] = to_float(sums.high[row][i]) * 256.0f + to_float(sums.low[row][i]);
      total[i] = total[i] * (scales[i] * tile.x.scales[row]);
    }
    store_row(tile, row, total[0], total[1]);
  }
}

// The compiler takes conversions from bytes apart, lane by lane.
inline VecF unsigned_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return to_float((VecI)_mm512_cvtepu8_epi32(load_as<__m128i>(p)));
#elif defined(__AVX2__)
  return to_float((VecI)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(load_as<int64_t>(p))));
#else
  return to_float(__builtin_convertvector(load_as<VecUB>(p), VecI));
#endif
}

inline VecF signed_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return to_float((VecI)_mm512_cvtepi8_epi32(load_as<__m128i>(p)));
#elif defined(__AVX2__)
  return to_float((VecI)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(load_as<int64_t>(p))));
#else
  return to_float(__builtin_convertvector(load_as<VecB>(p), VecI));
#endif
}

// A group's sum is of kGroup products below 2^19: no overflow.
template <class T, int kRows>
void multiply_int4(const Tile<T>& tile) {
  VecF total[kRows][2] = {};
  const int8_t* x = tile.x.bytes;
  const int32_t* row_sums = tile.x.sums;
  const uint8_t* words = tile.panel + tile.column * 4;
  VecF units[2][2];
  for (int i = 0; i < 2; ++i) {
    units[0][i] = load_as<VecF>(words + i * kLanes * 4);
    units[1][i] = load_as<VecF>(words + kStepBytes + i * kLanes * 4);
  }
  words += 2 * kStepBytes;
  for (int64_t start = 0; start < tile.depth; start += kGroup) {
    Sums<kRows> sums;
    for (int row = 0; row < kRows; ++row) {
      sums.high[row][0] = sums.high[row][1] = VecI{};
      sums.low[row][0] = sums.low[row][1] = broadcast_word(row_sums + row * 2);
    }
    for (int64_t k = 0; k < kGroup; k += 8) {
      prefetch<kRows>(words);
      VecU first = load_as<VecU>(words), second = load_as<VecU>(words + kLanes * 4);
      sums.add(first & 0x0f0f0f0fu, second & 0x0f0f0f0fu, x);
      sums.add(first >> 4 & 0x0f0f0f0fu, second >> 4 & 0x0f0f0f0fu, x + kRows * 8);
      x += 2 * kRows * 8;
      words += kStepBytes;
    }
    for (int i = 0; i < 2; ++i) {
      const uint8_t* bytes = words - tile.column * 3 + i * kLanes;
      VecF scale = unsigned_bytes(bytes) * units[0][i];
      VecF offset = signed_bytes(bytes + kQuantizedPanel) * units[1][i];
      for (int row = 0; row < kRows; ++row) {
        VecF sum = to_float((sums.high[row][i] << 8) + sums.low[row][i]) * scale;
        total[row][i] += sum + (VecF)broadcast_word(row_sums + row * 2 + 1) * offset;
      }
    }
    row_sums += kRows * 2;
    words += kQuantizedPanel * 2;
  }
  for (int row = 0; row < kRows; ++row) {
    store_row(tile, row, total[row][0] * tile.x.scales[row], total[row][1] * tile.x.scales[row]);
  }
}

// Sums of high and low bytes must fit the registers beside weights; int4 has totals as well.
template <WeightFormat kFormat>
constexpr int kMaxRows = kLanes == 16 ? (kFormat == WeightFormat::kInt8 ? 6 : 4) : 2;

template <class T, WeightFormat kFormat, int kRows = kMaxRows<kFormat>>
void multiply_tile(const Tile<T>& tile) {
  if (tile.x.count == kRows) {
    if constexpr (kFormat == WeightFormat::kInt8) return multiply_int8<T, kRows>(tile);
    if constexpr (kFormat == WeightFormat::kInt4) return multiply_int4<T, kRows>(tile);
  }
  if constexpr (kRows > 1) return multiply_tile<T, kFormat, kRows - 1>(tile);
}

// One product. Rows are cut into tiles of nearly equal height; a panel is multiplied with all.
template <class T, WeightFormat kFormat>
class Product {
 public:
  explicit Product(const LinearArgs& args)
      : a_(args),
        depth_(quantized_depth(kFormat, args.x.columns)),
        num_sums_(num_row_sums(kFormat, args.x.columns)),
        panel_bytes_(quantized_panel_bytes(kFormat, args.x.columns)),
        num_tiles_(ceil_div(args.x.rows, kMaxRows<kFormat>)),
        tile_rows_(ceil_div(args.x.rows, num_tiles_)),
        bytes_(static_cast<int8_t*>(args.scratch)),
        sums_(reinterpret_cast<int32_t*>(bytes_ + 2 * depth_ * args.x.rows)),
        scales_(reinterpret_cast<float*>(sums_ + num_sums_ * args.x.rows)),
        normed_(reinterpret_cast<T*>(scales_ + args.x.rows)) {}

  void run() {
    parallel_for(num_tiles_ > 1 ? a_.pool : nullptr, num_tiles_, [&](int64_t tile) {
      const Rows rows = rows_of(tile);
      for (int64_t row = 0; row < rows.count; ++row) {
        const T* x = normed_row(tile * tile_rows_ + row);
        convert_row<T, kFormat>(x, a_.x.columns, depth_, row, rows);
      }
    });
    const int64_t num_panels = ceil_div(a_.out.columns, kQuantizedPanel);
    parallel_for(a_.pool, num_panels, [&](int64_t panel) {
      for (int64_t tile = 0; tile < num_tiles_; ++tile) multiply(panel, tile);
    });
  }

 private:
  Rows rows_of(int64_t tile) const {
    const int64_t first = tile * tile_rows_;
    return {bytes_ + 2 * depth_ * first, sums_ + num_sums_ * first, scales_ + first,
            min(tile_rows_, a_.x.rows - first)};
  }

  // A row as it is multiplied: added up, then normed, if that is asked for.
  const T* normed_row(int64_t row) const {
    const int64_t size = a_.x.columns;
    T* x = static_cast<T*>(a_.x.data) + row * a_.x.stride;
    if (a_.norm == nullptr) return x;
    if (a_.added != nullptr) add_row(static_cast<const T*>(a_.added) + row * size, x, size);
    norm_row(x, static_cast<const T*>(a_.norm), normed_ + row * size, size, a_.norm_eps);
    return normed_ + row * size;
  }

  void multiply(int64_t panel, int64_t tile) const {
    const Rows rows = rows_of(tile);
    const int64_t column = panel * kQuantizedPanel;
    const int64_t columns = min(kQuantizedPanel, a_.out.columns - column);
    T* out = static_cast<T*>(a_.out.data) + tile * tile_rows_ * a_.out.stride + column;
    if (!a_.is_gated) return multiply_columns(rows, panel, out, a_.out.stride, columns);
    T gates[kMaxRows<kFormat> * kQuantizedPanel], ups[kMaxRows<kFormat> * kQuantizedPanel];
    multiply_columns(rows, panel, gates, kQuantizedPanel, columns);
    multiply_columns(rows, panel + a_.out.columns / kQuantizedPanel, ups, kQuantizedPanel, columns);
    for (int64_t row = 0; row < rows.count; ++row) {
      activate_row(gates + row * kQuantizedPanel, ups + row * kQuantizedPanel,
                   out + row * a_.out.stride, columns);
    }
  }

  void multiply_columns(const Rows& rows, int64_t panel, T* out, int64_t stride,
                        int64_t count) const {
    const uint8_t* weight = static_cast<const uint8_t*>(a_.weight) + panel * panel_bytes_;
    for (int64_t column = 0; column < count; column += kTileColumns) {
      multiply_tile<T, kFormat>({rows, weight, column, depth_, out + column, stride,
                                 min(kTileColumns, count - column)});
    }
  }

  const LinearArgs& a_;
  const int64_t depth_;
  const int64_t num_sums_;
  const int64_t panel_bytes_;
  const int64_t num_tiles_;
  const int64_t tile_rows_;
  int8_t* const bytes_;
  int32_t* const sums_;
  float* const scales_;
  T* const normed_;
};

template <class T>
void multiply(const LinearArgs& args) {
  args.format == WeightFormat::kInt8 ? Product<T, WeightFormat::kInt8>(args).run()
                                     : Product<T, WeightFormat::kInt4>(args).run();
}

}  // namespace

void linear_quantized(DType dtype, const LinearArgs& args) {
  dtype == DType::kFloat32 ? multiply<float>(args) : multiply<BFloat16>(args);
}

}  // namespace KERNEL_ISA
