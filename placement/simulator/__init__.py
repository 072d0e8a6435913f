"""What a placement would do with a workload: request by request, or iteration by iteration."""
