// The Python module: addresses and sizes that fabric.parallel.shm took from tensors and checked.
#include <pybind11/pybind11.h>

#include <algorithm>

#include "channel.h"
#include "collectives.h"

namespace {

namespace py = pybind11;
using shm::Kind;

bool has_signal() {
  py::gil_scoped_acquire acquire;
  return PyErr_CheckSignals() != 0;
}

char* at(uintptr_t address) { return reinterpret_cast<char*>(address); }

// One rank's end; every method but `abort` is for one thread at a time.
class Rank {
 public:
  Rank(int fd, uint64_t nonce, int rank, size_t one_phase_bytes, double spin_s, double silence_s,
       double timeout_s)
      : channel_(fd, nonce, rank, {spin_s, silence_s, timeout_s, has_signal}),
        collectives_(channel_, std::min(one_phase_bytes, channel_.slot_bytes())) {}

  uint32_t attach(double timeout_s) {
    return run([&] { return channel_.attach(timeout_s); });
  }
  uint32_t all_reduce(int kind, uintptr_t x, int64_t count) {
    return run([&] { return collectives_.all_reduce(static_cast<Kind>(kind), at(x), count); });
  }
  uint32_t reduce_scatter(int kind, uintptr_t x, int64_t count, uintptr_t out) {
    return run([&] {
      return collectives_.reduce_scatter(static_cast<Kind>(kind), at(x), count, at(out));
    });
  }
  uint32_t all_gather(uintptr_t x, int64_t bytes, uintptr_t out) {
    return run([&] { return collectives_.all_gather(at(x), bytes, at(out)); });
  }
  uint32_t all_to_all(uintptr_t x, int64_t bytes, uintptr_t out) {
    return run([&] { return collectives_.all_to_all(at(x), bytes, at(out)); });
  }
  uint32_t broadcast(uintptr_t x, int64_t bytes, int root) {
    return run([&] { return collectives_.broadcast(at(x), bytes, root); });
  }
  uint32_t send(uintptr_t x, int64_t bytes, int to) {
    return run([&] { return channel_.send(at(x), bytes, to); });
  }
  uint32_t recv(uintptr_t x, int64_t bytes, int source) {
    return run([&] { return channel_.receive(at(x), bytes, source); });
  }
  uint32_t barrier() {
    return run([&] { return collectives_.barrier(); });
  }
  void abort() { channel_.abort(); }

 private:
  // Runs an operation without Python's lock; a group that has ended stays so.
  template <class Operation>
  uint32_t run(Operation operation) {
    uint32_t verdict = channel_.verdict();
    if (verdict != shm::kFine) return verdict;
    {
      py::gil_scoped_release release;
      verdict = operation();
    }
    // What a signal's handler raised, such as KeyboardInterrupt.
    if (PyErr_Occurred()) throw py::error_already_set();
    return verdict;
  }

  shm::Channel channel_;
  shm::Collectives collectives_;
};

int create_segment(int size, size_t slot_bytes, size_t ring_bytes, uint64_t nonce) {
  return shm::create_segment({size, slot_bytes, ring_bytes}, nonce);
}

}  // namespace

PYBIND11_MODULE(_shm, module) {
  module.def("create_segment", &create_segment, py::arg("size"), py::arg("slot_bytes"),
             py::arg("ring_bytes"), py::arg("nonce"));
  py::class_<Rank>(module, "Rank")
      .def(py::init<int, uint64_t, int, size_t, double, double, double>(), py::arg("fd"),
           py::arg("nonce"), py::arg("rank"), py::arg("one_phase_bytes"), py::arg("spin_s"),
           py::arg("silence_s"), py::arg("timeout_s"))
      .def("attach", &Rank::attach)
      .def("all_reduce", &Rank::all_reduce)
      .def("reduce_scatter", &Rank::reduce_scatter)
      .def("all_gather", &Rank::all_gather)
      .def("all_to_all", &Rank::all_to_all)
      .def("broadcast", &Rank::broadcast)
      .def("send", &Rank::send)
      .def("recv", &Rank::recv)
      .def("barrier", &Rank::barrier)
      .def("abort", &Rank::abort, py::call_guard<py::gil_scoped_release>());
}
