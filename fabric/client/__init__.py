"""The client SDK: an async client over gRPC and a sync portal over it."""
