"""Which processor cores a worker computes on where several share a host."""

import os


def share_cores(place: int, num_workers: int, num_threads: int | None = None) -> int:
    """Keep the calling thread, and the threads that it starts, on its worker's share of the cores.

    Where there are too few cores for all threads, the system places them as it likes.

    Args:
        place: The worker's among those of its device group on this host.
        num_workers: How many these are.
        num_threads: Of each worker; None: the cores divided, and at least one.

    Returns:
        How many threads the worker should compute with.
    """
    cores = sorted(os.sched_getaffinity(0))
    count = num_threads or max(1, len(cores) // num_workers)
    if count * num_workers <= len(cores):
        os.sched_setaffinity(0, cores[place * count : (place + 1) * count])
    return count
