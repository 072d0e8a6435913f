"""Records iterations as CUDA graphs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fabric.engine.decode_graphs import Replay


class CudaGraphRecorder:
    """Graphs of one model on the current device; their intermediate results share memory.

    So at most one of them may be running, and its output is read before the next one is replayed.
    Threads that copy blocks and weights go on meanwhile: only the recording one is watched for
    calls that can't be recorded.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """See Recorder; it is not carried out."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = run()
        self._pool = self._pool or graph.pool()
        return graph.replay, output

    def clear(self) -> None:
        """Take memory anew for the next graphs."""
        self._pool = None
