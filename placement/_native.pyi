"""The C++ extension (csrc/bindings.cpp)."""
