"""C++ CPU backend."""
