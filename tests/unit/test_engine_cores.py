"""Workers of one host divide its cores."""

import os
import threading
from collections.abc import Callable

from fabric.engine.cores import share_cores


def on_a_thread(work: Callable[[], int]) -> tuple[int, set[int]]:
    """What the work returns, and the cores that its thread is left with."""
    results: list[tuple[int, set[int]]] = []

    def run() -> None:
        results.append((work(), os.sched_getaffinity(0)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def test_workers_get_cores_of_their_own() -> None:
    cores = os.sched_getaffinity(0)
    shares = [
        on_a_thread(lambda place=place: share_cores(place, len(cores)))
        for place in range(len(cores))
    ]
    assert [num_threads for num_threads, _ in shares] == [1] * len(cores)
    assert set().union(*(own for _, own in shares)) == cores
    assert sum(len(own) for _, own in shares) == len(cores)


def test_a_lone_worker_keeps_all_cores() -> None:
    cores = os.sched_getaffinity(0)
    assert on_a_thread(lambda: share_cores(0, 1)) == (len(cores), cores)


def test_more_threads_than_cores_are_left_to_the_system() -> None:
    cores = os.sched_getaffinity(0)
    assert on_a_thread(lambda: share_cores(0, 2, len(cores))) == (len(cores), cores)
    assert on_a_thread(lambda: share_cores(3, 10 * len(cores))) == (1, cores)
