// The Python module: takes addresses and sizes that kernels.cpu.backend took from tensors and
// checked, checks the indices inside them, chooses the instruction set and the number of threads.
#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cache.h"
#include "kernels.h"
#include "threads.h"

#if defined(__x86_64__)
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

// Sharing work out costs as much as this many multiply-adds, or moved elements, on one.
constexpr int64_t kMinMultiplies = 1 << 17;
constexpr int64_t kMinElements = 1 << 14;

struct Isa {
  std::string name;
  const Table* table;
};

// Best first.
std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bf16")) {
    isas.push_back({"avx512", &avx512::table});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas.push_back({"avx2", &avx2::table});
  }
#endif
  isas.push_back({"portable", &portable::table});
  return isas;
}

const Table& find_table(const std::string& name) {
  std::string known;
  for (const Isa& isa : supported_isas()) {
    if (isa.name == name) return *isa.table;
    known += (known.empty() ? "" : ", ") + isa.name;
  }
  throw std::invalid_argument("isa '" + name + "' is not one of this processor's: " + known);
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
void check_below(const T* values, int64_t count, int64_t bound, const char* what) {
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= bound) {
      throw std::out_of_range(std::string(what) + " " + std::to_string(values[i]) +
                              " is outside 0 to " + std::to_string(bound - 1));
    }
  }
}

// One layer of kv_cache[num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]; in elements.
struct Layer {
  Layer(const py::tuple& shape, int64_t layer)
      : num_blocks(shape[0].cast<int64_t>()),
        num_kv_heads(shape[3].cast<int64_t>()),
        block_size(shape[4].cast<int64_t>()),
        head_dim(shape[5].cast<int64_t>()),
        keys(layer * 2 * num_kv_heads * block_size * head_dim),
        values(keys + num_kv_heads * block_size * head_dim) {}

  const int64_t num_blocks, num_kv_heads, block_size, head_dim;
  const int64_t keys, values;  // where they start in a block
};

// The addresses of a RaggedBatch, and its sizes.
struct Batch {
  const int32_t* positions;
  const int32_t* query_start;
  const int32_t* context_lens;
  const int32_t* block_tables;
  int64_t num_tokens;
  int64_t num_sequences;
  int64_t max_blocks;
};

// A wrong batch would read or write memory that isn't its own.
void check_batch(const Batch& b, const Layer& layer) {
  if (b.query_start[0] != 0 || b.query_start[b.num_sequences] != b.num_tokens) {
    throw std::invalid_argument("query_start must go from 0 to the number of query rows, " +
                                std::to_string(b.num_tokens));
  }
  for (int64_t sequence = 0; sequence < b.num_sequences; ++sequence) {
    int64_t first = b.query_start[sequence], end = b.query_start[sequence + 1];
    int64_t context = b.context_lens[sequence];
    int64_t num_used = ceil_div(context, layer.block_size);
    if (first > end || end > b.num_tokens || end - first > context || num_used > b.max_blocks) {
      throw std::invalid_argument("sequence " + std::to_string(sequence) + " has " +
                                  std::to_string(end - first) + " new tokens, a context of " +
                                  std::to_string(context) + " and room for " +
                                  std::to_string(b.max_blocks * layer.block_size));
    }
    for (int64_t token = first; token < end; ++token) {
      if (b.positions[token] != context - end + token) {
        throw std::invalid_argument("token " + std::to_string(token) + " is at position " +
                                    std::to_string(b.positions[token]) + ", not " +
                                    std::to_string(context - end + token));
      }
    }
    check_below(b.block_tables + sequence * b.max_blocks, num_used, layer.num_blocks, "block");
  }
}

std::vector<AttentionTask> cut_attention(const Batch& b, const Layer& layer, int64_t num_heads) {
  std::vector<AttentionTask> tasks;
  for (int64_t sequence = 0; sequence < b.num_sequences; ++sequence) {
    int64_t num_tokens = b.query_start[sequence + 1] - b.query_start[sequence];
    int64_t num_rows = num_tokens * (num_heads / layer.num_kv_heads);
    for (int64_t first = 0; first < num_rows; first += kAttentionRows) {
      int64_t rows = num_rows - first < kAttentionRows ? num_rows - first : kAttentionRows;
      for (int64_t head = 0; head < layer.num_kv_heads; ++head) {
        tasks.push_back(
            {static_cast<int32_t>(sequence), static_cast<int32_t>(head), first, rows});
      }
    }
  }
  return tasks;
}

int64_t count_scores(const Batch& b, int64_t num_heads) {
  int64_t count = 0;
  for (int64_t sequence = 0; sequence < b.num_sequences; ++sequence) {
    int64_t num_tokens = b.query_start[sequence + 1] - b.query_start[sequence];
    count += num_tokens * b.context_lens[sequence];
  }
  return count * num_heads;
}

class Kernels {
 public:
  Kernels(const std::string& isa, int num_threads)
      : table_(find_table(isa)), pool_(std::make_unique<ThreadPool>(num_threads)) {}

  int64_t packed_rows(int64_t rows) const {
    return ceil_div(rows, table_.panel_width()) * table_.panel_width();
  }

  void pack_linear(bool bf16, uintptr_t weight, int64_t rows, int64_t columns, int64_t stride,
                   uintptr_t packed) const {
    py::gil_scoped_release release;
    table_.pack_linear(dtype(bf16), {at<void>(weight), rows, columns, stride}, at<void>(packed),
                       pool_.get());
  }

  void linear(bool bf16, uintptr_t x, int64_t rows, int64_t columns, int64_t stride,
              uintptr_t weight, int64_t out_columns, uintptr_t out) const {
    py::gil_scoped_release release;
    if (rows == 0) return;
    std::unique_ptr<char[]> scratch(new char[rows * (columns + 1) * (bf16 ? 2 : 4)]);
    table_.linear(dtype(bf16), {{at<void>(x), rows, columns, stride},
                                {at<void>(out), rows, out_columns, out_columns},
                                at<void>(weight),
                                scratch.get(),
                                threads(rows * columns * out_columns, kMinMultiplies)});
  }

  void rms_norm(bool bf16, uintptr_t x, int64_t rows, int64_t columns, int64_t stride,
                uintptr_t residual, uintptr_t weight, uintptr_t out, float eps) const {
    py::gil_scoped_release release;
    table_.rms_norm(dtype(bf16), {{at<void>(x), rows, columns, stride},
                                  at<void>(residual),
                                  at<void>(weight),
                                  at<void>(out),
                                  eps,
                                  threads(rows * columns, kMinElements)});
  }

  void rope(bool bf16, uintptr_t x, int64_t rows, int64_t columns, int64_t stride,
            int64_t head_dim, uintptr_t positions, uintptr_t cos_sin, int64_t max_len) const {
    py::gil_scoped_release release;
    check_below(at<int32_t>(positions), rows, max_len, "position");
    table_.rope(dtype(bf16), {{at<void>(x), rows, columns, stride},
                              head_dim,
                              at<int32_t>(positions),
                              at<float>(cos_sin),
                              threads(rows * columns, kMinElements)});
  }

  void silu_and_mul(bool bf16, uintptr_t gate_up, int64_t rows, int64_t columns, int64_t stride,
                    uintptr_t out) const {
    py::gil_scoped_release release;
    table_.silu_and_mul(dtype(bf16), {at<void>(gate_up), rows, columns, stride}, at<void>(out),
                        threads(rows * columns, kMinElements));
  }

  void paged_attention(bool bf16, uintptr_t query, int64_t query_stride, int64_t num_heads,
                       uintptr_t out, uintptr_t kv_cache, const py::tuple& kv_shape,
                       int64_t block_stride, int64_t layer_index, uintptr_t positions,
                       uintptr_t query_start, uintptr_t context_lens, uintptr_t block_tables,
                       int64_t num_tokens, int64_t num_sequences, int64_t max_blocks,
                       float scale) const {
    const Layer layer(kv_shape, layer_index);
    const Batch batch = {at<int32_t>(positions),    at<int32_t>(query_start),
                         at<int32_t>(context_lens), at<int32_t>(block_tables),
                         num_tokens,                num_sequences,
                         max_blocks};
    py::gil_scoped_release release;
    check_batch(batch, layer);
    const std::vector<AttentionTask> tasks = cut_attention(batch, layer, num_heads);
    const int64_t element = bf16 ? 2 : 4;
    table_.paged_attention(
        dtype(bf16),
        {at<void>(query), query_stride, at<void>(out), at<char>(kv_cache) + layer.keys * element,
         at<char>(kv_cache) + layer.values * element, block_stride, num_heads, layer.num_kv_heads,
         layer.head_dim, layer.block_size, batch.positions, batch.query_start, batch.block_tables,
         max_blocks, tasks.data(), static_cast<int64_t>(tasks.size()), scale,
         threads(count_scores(batch, num_heads) * layer.head_dim, kMinMultiplies)});
  }

  void store_kv(bool bf16, uintptr_t key, int64_t key_stride, uintptr_t value,
                int64_t value_stride, uintptr_t kv_cache, const py::tuple& kv_shape,
                int64_t block_stride, int64_t layer_index, uintptr_t slots,
                int64_t num_tokens) const {
    const Layer layer(kv_shape, layer_index);
    const int64_t element = bf16 ? 2 : 4;
    py::gil_scoped_release release;
    check_below(at<int64_t>(slots), num_tokens, layer.num_blocks * layer.block_size, "slot");
    ::store_kv({at<char>(key), at<char>(value), key_stride * element, value_stride * element,
                at<char>(kv_cache) + layer.keys * element,
                at<char>(kv_cache) + layer.values * element, block_stride * element,
                layer.num_kv_heads, layer.block_size, layer.head_dim * element, at<int64_t>(slots),
                num_tokens,
                threads(num_tokens * layer.num_kv_heads * layer.head_dim, kMinElements)});
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
                   at<int64_t>(pairs), num_pairs, threads(num_pairs * block_bytes, kMinElements)});
  }

 private:
  static DType dtype(bool bf16) { return bf16 ? DType::kBFloat16 : DType::kFloat32; }

  ThreadPool* threads(int64_t work, int64_t least) const {
    return work < 2 * least ? nullptr : pool_.get();
  }

  const Table& table_;
  const std::unique_ptr<ThreadPool> pool_;
};

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.def("supported_isas", [] {
    py::list names;
    for (const Isa& isa : supported_isas()) names.append(isa.name);
    return names;
  });
  py::class_<Kernels>(m, "Kernels")
      .def(py::init<const std::string&, int>())
      .def("packed_rows", &Kernels::packed_rows)
      .def("pack_linear", &Kernels::pack_linear)
      .def("linear", &Kernels::linear)
      .def("rms_norm", &Kernels::rms_norm)
      .def("rope", &Kernels::rope)
      .def("silu_and_mul", &Kernels::silu_and_mul)
      .def("paged_attention", &Kernels::paged_attention)
      .def("store_kv", &Kernels::store_kv)
      .def("copy_blocks", &Kernels::copy_blocks);
}
