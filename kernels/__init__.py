"""Paged-attention and transformer kernels behind one set of operations (kernels.ops)."""
