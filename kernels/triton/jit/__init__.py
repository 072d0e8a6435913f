"""What runs on the device: Triton functions. Pointers, strides and sizes were checked before."""
