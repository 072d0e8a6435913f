// The planner's compiled parts, as Python sees them.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_native, module) {
    module.doc() = "Request-level simulation and search, compiled.";
}
