"""Generated gRPC stubs (protos/generate.py)."""
