"""The gRPC front: validates, tokenizes, admits and relays requests to device groups."""
