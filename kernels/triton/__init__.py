"""The operations on NVIDIA GPUs, written in Triton; on CPU tensors under Triton's interpreter."""
