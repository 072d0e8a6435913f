"""Values that every layer shares: requests, sampling, errors, time. Standard library only."""
