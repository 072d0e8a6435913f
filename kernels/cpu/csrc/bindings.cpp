// The Python module: takes addresses and sizes that kernels.cpu.backend took from tensors and
// checked, checks the indices inside them, chooses the instruction set and the number of threads.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "batch.h"
#include "cache.h"
#include "decoder.h"
#include "quantized.h"
#include "team.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
namespace amx {
extern const Table table;
}
namespace amx_emulated {
extern const Table table;
}
namespace avx512 {
extern const Table table;
}
namespace avx2 {
extern const Table table;
}
#endif
namespace portable {
extern const Table table;
}

namespace {

namespace py = pybind11;

struct Isa {
  std::string name;
  const Table* table;
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}

// Whether the processor has tile registers, the system saves them, and lets us use them.
bool has_amx() {
  unsigned a, b, c, d;
  if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// Best first.
std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (has_amx()) isas.push_back({"amx", &amx::table});
  if (has_avx512()) isas.push_back({"avx512", &avx512::table});
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas.push_back({"avx2", &avx2::table});
  }
#endif
  isas.push_back({"portable", &portable::table});
  return isas;
}

// Builds that stand in for processors that tests don't run on.
std::vector<Isa> emulated_isas() {
#if defined(__x86_64__)
  if (has_avx512()) return {{"amx_emulated", &amx_emulated::table}};
#endif
  return {};
}

const Table& find_table(const std::string& name) {
  std::string known;
  for (const Isa& isa : emulated_isas()) {
    if (isa.name == name) return *isa.table;
  }
  for (const Isa& isa : supported_isas()) {
    if (isa.name == name) return *isa.table;
    known += (known.empty() ? "" : ", ") + isa.name;
  }
  throw std::invalid_argument("isa '" + name + "' is not one of this processor's: " + known);
}

py::list names_of(const std::vector<Isa>& isas) {
  py::list names;
  for (const Isa& isa : isas) names.append(isa.name);
  return names;
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// From (address, number of blocks, layers, KV heads, block size, head size, block stride).
Cache make_cache(const py::tuple& t, bool bf16) {
  auto number = [&](int i) { return t[i].cast<int64_t>(); };
  return {at<char>(t[0].cast<uintptr_t>()), number(1), number(2), number(3), number(4), number(5),
          number(6), bf16 ? 2 : 4};
}

// From (positions, slots, query_start, context_lens, block_tables, tokens, sequences, blocks).
Batch make_batch(const py::tuple& t) {
  auto number = [&](int i) { return t[i].cast<int64_t>(); };
  auto address = [&](int i) { return t[i].cast<uintptr_t>(); };
  return {at<int32_t>(address(0)), at<int64_t>(address(1)), at<int32_t>(address(2)),
          at<int32_t>(address(3)), at<int32_t>(address(4)), number(5), number(6), number(7)};
}

// Bits of a quantized weight; 0: it isn't quantized.
WeightFormat format_of(int bits) {
  if (bits == 0) return WeightFormat::kDense;
  return bits == 8 ? WeightFormat::kInt8 : WeightFormat::kInt4;
}

// From (hidden and intermediate size, heads, KV heads, head size, eps, scale, cos_sin, its rows) and
// (input_norm, qkv, bias, output, mlp_norm, gate_up, down), where linears are (address, out, in,
// bits).
DecoderLayer make_layer(bool bf16, const py::tuple& s, const py::tuple& w, int64_t index) {
  auto size = [&](int i) { return s[i].cast<int64_t>(); };
  auto address = [&](int i) { return at<void>(w[i].cast<uintptr_t>()); };
  auto linear = [&](int i) {
    const py::tuple t = w[i].cast<py::tuple>();
    return Weight{at<void>(t[0].cast<uintptr_t>()), t[1].cast<int64_t>(), t[2].cast<int64_t>(),
                  format_of(t[3].cast<int>())};
  };
  return {bf16 ? DType::kBFloat16 : DType::kFloat32,
          {size(0), size(1), size(2), size(3), size(4), s[5].cast<float>(), s[6].cast<float>(),
           at<float>(s[7].cast<uintptr_t>()), size(8)},
          {address(0), linear(1), address(2), linear(3), address(4), linear(5), linear(6)},
          index};
}

// A layer's own operands were checked when it was made.
void check_layer(const DecoderLayer& layer, const Cache& cache) {
  const DecoderShape& shape = layer.shape;
  if (layer.index < 0 || layer.index >= cache.num_layers ||
      shape.num_kv_heads != cache.num_kv_heads || shape.head_dim != cache.head_dim) {
    throw std::invalid_argument("layer " + std::to_string(layer.index) + " with " +
                                std::to_string(shape.num_kv_heads) + " KV heads of " +
                                std::to_string(shape.head_dim) + " doesn't fit a cache of " +
                                std::to_string(cache.num_layers) + " layers with " +
                                std::to_string(cache.num_kv_heads) + " of " +
                                std::to_string(cache.head_dim));
  }
}

void check_step(const DecoderShape& shape, const Batch& batch, const Cache& cache) {
  check_batch(batch, cache);
  check_slots(batch.slots, batch.num_tokens, cache);
  check_below(batch.positions, batch.num_tokens, shape.max_model_len, "position");
}

class Kernels {
 public:
  Kernels(const std::string& isa, int num_threads)
      : pool_(std::make_unique<ThreadPool>(num_threads)),
        team_{find_table(isa), pool_.get(), num_threads} {}

  int64_t packed_rows(int64_t rows) const {
    return ceil_div(rows, team_.table.panel_width()) * team_.table.panel_width();
  }

  int64_t packed_depth(bool bf16, int64_t columns) const {
    return team_.table.panel_depth(dtype(bf16), columns);
  }

  void pack_linear(bool bf16, uintptr_t weight, int64_t rows, int64_t columns, int64_t stride,
                   uintptr_t packed) const {
    py::gil_scoped_release release;
    team_.table.pack_linear(dtype(bf16), {at<void>(weight), rows, columns, stride}, at<void>(packed),
                       pool_.get());
  }

  void linear(bool bf16, uintptr_t x, int64_t rows, int64_t columns, int64_t stride,
              uintptr_t weight, int64_t out_columns, uintptr_t out) const {
    linear_quantized(bf16, 0, x, rows, columns, stride, weight, out_columns, out);
  }

  // What pack_quantized fills: panels, and the bytes of each.
  static std::pair<int64_t, int64_t> quantized_shape(int bits, int64_t rows, int64_t columns) {
    return {ceil_div(rows, kQuantizedPanel), quantized_panel_bytes(format_of(bits), columns)};
  }

  void pack_quantized(bool bf16, int bits, uintptr_t weight, int64_t rows, int64_t columns,
                      int64_t stride, uintptr_t packed) const {
    py::gil_scoped_release release;
    team_.table.pack_quantized(dtype(bf16), format_of(bits),
                               {at<void>(weight), rows, columns, stride}, at<void>(packed),
                               team_.pool);
  }

  void linear_quantized(bool bf16, int bits, uintptr_t x, int64_t rows, int64_t columns,
                        int64_t stride, uintptr_t weight, int64_t out_columns,
                        uintptr_t out) const {
    py::gil_scoped_release release;
    if (rows == 0) return;
    const Buffer scratch = allocate(linear_scratch_bytes(rows, columns));
    LinearArgs args = {{at<void>(x), rows, columns, stride},
                       {at<void>(out), rows, out_columns, out_columns},
                       at<void>(weight),
                       scratch.get(),
                       team_.threads(rows * columns * out_columns, kMinMultiplies)};
    args.format = format_of(bits);
    team_.table.linear(dtype(bf16), args);
  }

  void rms_norm(bool bf16, uintptr_t x, int64_t rows, int64_t columns, int64_t stride,
                uintptr_t residual, uintptr_t weight, uintptr_t out, float eps) const {
    py::gil_scoped_release release;
    team_.table.rms_norm(dtype(bf16), {{at<void>(x), rows, columns, stride},
                                  at<void>(residual),
                                  at<void>(weight),
                                  at<void>(out),
                                  eps,
                                  team_.threads(rows * columns, kMinElements)});
  }

  void rope(bool bf16, uintptr_t x, int64_t rows, int64_t columns, int64_t stride,
            int64_t head_dim, uintptr_t positions, uintptr_t cos_sin, int64_t max_len) const {
    py::gil_scoped_release release;
    check_below(at<int32_t>(positions), rows, max_len, "position");
    team_.table.rope(dtype(bf16), {{at<void>(x), rows, columns, stride},
                              head_dim,
                              at<int32_t>(positions),
                              at<float>(cos_sin),
                              team_.threads(rows * columns, kMinElements)});
  }

  void silu_and_mul(bool bf16, uintptr_t gate_up, int64_t rows, int64_t columns, int64_t stride,
                    uintptr_t out) const {
    py::gil_scoped_release release;
    team_.table.silu_and_mul(dtype(bf16), {at<void>(gate_up), rows, columns, stride}, at<void>(out),
                        team_.threads(rows * columns, kMinElements));
  }

  void paged_attention(bool bf16, uintptr_t query, int64_t query_stride, int64_t num_heads,
                       uintptr_t out, const py::tuple& kv_cache, int64_t layer,
                       const py::tuple& ragged, float scale) const {
    const Cache cache = make_cache(kv_cache, bf16);
    const Batch batch = make_batch(ragged);
    py::gil_scoped_release release;
    check_batch(batch, cache);
    const AttentionPlan plan(batch, num_heads, cache.num_kv_heads, team_.num_threads);
    AttentionArgs args = plan.args(batch, cache, layer);
    args.query = at<void>(query);
    args.query_stride = query_stride;
    args.out = at<void>(out);
    args.scale = scale;
    args.pool = team_.threads(plan.work() * cache.head_dim, kMinMultiplies);
    team_.table.paged_attention(dtype(bf16), args);
  }

  void store_kv(bool bf16, uintptr_t key, int64_t key_stride, uintptr_t value,
                int64_t value_stride, const py::tuple& kv_cache, int64_t layer, uintptr_t slots,
                int64_t num_tokens) const {
    const Cache cache = make_cache(kv_cache, bf16);
    const int64_t element = cache.element_bytes;
    py::gil_scoped_release release;
    check_slots(at<int64_t>(slots), num_tokens, cache);
    ::store_kv({at<char>(key), at<char>(value), key_stride * element, value_stride * element,
                cache.keys(layer), cache.values(layer), cache.block_stride * element,
                cache.num_kv_heads, cache.block_size, cache.head_dim * element,
                at<int64_t>(slots), num_tokens,
                team_.threads(num_tokens * cache.num_kv_heads * cache.head_dim, kMinElements)});
  }

  void attention_half(const DecoderLayer& layer, uintptr_t x, uintptr_t residual, uintptr_t out,
                      const py::tuple& ragged, const py::tuple& kv_cache) const {
    const Cache cache = make_cache(kv_cache, layer.dtype == DType::kBFloat16);
    const Batch batch = make_batch(ragged);
    py::gil_scoped_release release;
    check_layer(layer, cache);
    check_step(layer.shape, batch, cache);
    DecoderRun run(team_, layer.shape, layer.dtype, batch, cache);
    run.attention(layer, at<void>(x), at<void>(residual), at<void>(out));
  }

  void mlp_half(const DecoderLayer& layer, uintptr_t x, uintptr_t residual, uintptr_t out,
                int64_t num_tokens) const {
    py::gil_scoped_release release;
    DecoderRun run(team_, layer.shape, layer.dtype, num_tokens);
    run.mlp(layer, at<void>(x), at<void>(residual), at<void>(out));
  }

  void run_layers(const std::vector<const DecoderLayer*>& layers, uintptr_t hidden,
                  const py::tuple& ragged, const py::tuple& kv_cache) const {
    const DecoderLayer& first = *layers.at(0);
    const Cache cache = make_cache(kv_cache, first.dtype == DType::kBFloat16);
    const Batch batch = make_batch(ragged);
    py::gil_scoped_release release;
    for (const DecoderLayer* layer : layers) check_layer(*layer, cache);
    check_step(first.shape, batch, cache);
    DecoderRun run(team_, first.shape, first.dtype, batch, cache);
    run.layers(layers.data(), static_cast<int64_t>(layers.size()), at<void>(hidden));
  }

  void copy_blocks(uintptr_t source, int64_t num_source_blocks, int64_t source_stride,
                   uintptr_t target, int64_t num_target_blocks, int64_t target_stride,
                   int64_t block_bytes, uintptr_t pairs, int64_t num_pairs) const {
    py::gil_scoped_release release;
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
      check_below(at<int64_t>(pairs) + 2 * pair, 1, num_source_blocks, "source block");
      check_below(at<int64_t>(pairs) + 2 * pair + 1, 1, num_target_blocks, "target block");
    }
    ::copy_blocks({at<char>(source), at<char>(target), source_stride, target_stride, block_bytes,
                   at<int64_t>(pairs), num_pairs, team_.threads(num_pairs * block_bytes, kMinElements)});
  }

 private:
  static DType dtype(bool bf16) { return bf16 ? DType::kBFloat16 : DType::kFloat32; }

  const std::unique_ptr<ThreadPool> pool_;
  const Team team_;
};

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.def("supported_isas", [] { return names_of(supported_isas()); });
  m.def("emulated_isas", [] { return names_of(emulated_isas()); });
  py::class_<DecoderLayer>(m, "DecoderLayer").def(py::init(&make_layer));
  py::class_<Kernels>(m, "Kernels")
      .def(py::init<const std::string&, int>())
      .def("packed_rows", &Kernels::packed_rows)
      .def("packed_depth", &Kernels::packed_depth)
      .def("pack_linear", &Kernels::pack_linear)
      .def("linear", &Kernels::linear)
      .def_static("quantized_shape", &Kernels::quantized_shape)
      .def("pack_quantized", &Kernels::pack_quantized)
      .def("linear_quantized", &Kernels::linear_quantized)
      .def("rms_norm", &Kernels::rms_norm)
      .def("rope", &Kernels::rope)
      .def("silu_and_mul", &Kernels::silu_and_mul)
      .def("paged_attention", &Kernels::paged_attention)
      .def("store_kv", &Kernels::store_kv)
      .def("copy_blocks", &Kernels::copy_blocks)
      .def("attention_half", &Kernels::attention_half)
      .def("mlp_half", &Kernels::mlp_half)
      .def("run_layers", &Kernels::run_layers);
}
