// The Python module for rows of scores; kernels.cpu.scores has checked what it is given.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "scores.h"
#include "threads.h"

#if defined(__x86_64__)
namespace avx512 {
extern const RowPasses row_passes;
}
namespace avx2 {
extern const RowPasses row_passes;
}
#endif
namespace portable {
extern const RowPasses row_passes;
}

namespace {

namespace py = pybind11;

// Fewer scores than this are read on one thread.
constexpr int64_t kMinScores = 1 << 16;

const RowPasses& find_passes(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512" || isa == "amx") return avx512::row_passes;  // tiles are for products
  if (isa == "avx2") return avx2::row_passes;
#endif
  if (isa == "portable") return portable::row_passes;
  throw std::invalid_argument("isa '" + isa + "' is not known");
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void check_row(int64_t row, int64_t rows) {
  if (row < 0 || row >= rows) {
    throw std::out_of_range("row " + std::to_string(row) + " is outside 0 to " +
                            std::to_string(rows - 1));
  }
}

// row, temperature, top_k, top_p, min_p, uniforms
using Draw = std::tuple<int64_t, float, int64_t, double, double, std::vector<double>>;

class Scores {
 public:
  Scores(const std::string& isa, int num_threads)
      : passes_(find_passes(isa)), pool_(std::make_unique<ThreadPool>(num_threads)) {}

  std::vector<int64_t> argmax(bool bf16, uintptr_t data, int64_t rows, int64_t columns,
                              int64_t stride) const {
    std::vector<int64_t> places(rows);
    py::gil_scoped_release release;
    const DType dtype = bf16 ? DType::kBFloat16 : DType::kFloat32;
    const char* first = at<const char>(data);
    for_each(rows, columns, [&](int64_t row) {
      places[row] = passes_.argmax(dtype, first + row * stride * (bf16 ? 2 : 4), columns);
    });
    return places;
  }

  void top(uintptr_t data, int64_t rows, int64_t columns, int64_t stride,
           const std::vector<int64_t>& chosen, const std::vector<int64_t>& counts, uintptr_t ids,
           uintptr_t scores) const {
    std::vector<TopRow> tops;
    int64_t offset = 0;
    for (size_t i = 0; i < chosen.size(); ++i) {
      check_row(chosen[i], rows);
      if (counts.at(i) < 0 || counts[i] > columns) {
        throw std::out_of_range("count " + std::to_string(counts[i]) + " is outside 0 to " +
                                std::to_string(columns));
      }
      tops.push_back({chosen[i], counts[i], at<int64_t>(ids) + offset, at<float>(scores) + offset});
      offset += counts[i];
    }
    py::gil_scoped_release release;
    const Matrix matrix = {at<void>(data), rows, columns, stride};
    for_each(tops.size(), columns, [&](int64_t i) {
      if (tops[i].count > 0) top_of_row(passes_, matrix, tops[i]);
    });
  }

  std::vector<float> log_sum_exp(uintptr_t data, int64_t rows, int64_t columns, int64_t stride,
                                 const std::vector<int64_t>& chosen) const {
    for (int64_t row : chosen) check_row(row, rows);
    std::vector<float> sums(chosen.size());
    py::gil_scoped_release release;
    const Matrix matrix = {at<void>(data), rows, columns, stride};
    for_each(chosen.size(), columns,
             [&](int64_t i) { sums[i] = ::log_sum_exp(passes_, matrix, chosen[i]); });
    return sums;
  }

  std::vector<int64_t> num_above(uintptr_t data, int64_t rows, int64_t columns, int64_t stride,
                                 const std::vector<int64_t>& chosen,
                                 const std::vector<float>& bounds) const {
    for (int64_t row : chosen) check_row(row, rows);
    if (bounds.size() != chosen.size()) throw std::invalid_argument("a bound a row is needed");
    std::vector<int64_t> counts(chosen.size());
    py::gil_scoped_release release;
    const float* first = at<const float>(data);
    for_each(chosen.size(), columns, [&](int64_t i) {
      counts[i] = passes_.count_above(first + chosen[i] * stride, columns, bounds[i]);
    });
    return counts;
  }

  std::vector<std::vector<int64_t>> draw(uintptr_t data, int64_t rows, int64_t columns,
                                         int64_t stride, const std::vector<Draw>& draws) const {
    std::vector<DrawRow> chosen;
    for (const Draw& d : draws) {
      check_row(std::get<0>(d), rows);
      chosen.push_back({std::get<0>(d), std::get<1>(d), std::get<2>(d), std::get<3>(d),
                        std::get<4>(d), std::get<5>(d)});
    }
    std::vector<std::vector<int64_t>> tokens(chosen.size());
    py::gil_scoped_release release;
    const Matrix matrix = {at<void>(data), rows, columns, stride};
    for_each(chosen.size(), columns,
             [&](int64_t i) { tokens[i] = draw_row(passes_, matrix, chosen[i]); });
    return tokens;
  }

 private:
  template <class Body>
  void for_each(int64_t count, int64_t columns, const Body& body) const {
    if (count == 0 || columns == 0) return;
    Range range = [](const void* context, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) (*static_cast<const Body*>(context))(i);
    };
    if (count * columns < kMinScores) return range(&body, 0, count);
    pool_->run(count, range, &body);
  }

  const RowPasses& passes_;
  const std::unique_ptr<ThreadPool> pool_;
};

}  // namespace

PYBIND11_MODULE(_scores, m) {
  py::class_<Scores>(m, "Scores")
      .def(py::init<const std::string&, int>())
      .def("argmax", &Scores::argmax)
      .def("top", &Scores::top)
      .def("log_sum_exp", &Scores::log_sum_exp)
      .def("num_above", &Scores::num_above)
      .def("draw", &Scores::draw);
}
