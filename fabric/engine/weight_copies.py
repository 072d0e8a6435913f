"""The ways that a rank's packed weights are written: out of a checkpoint, or out of an image."""

from collections.abc import Callable
from functools import partial

from fabric.engine.device_weights import PIECE_BYTES, DeviceWeights
from fabric.engine.host_weights import HostImage, WriteAt
from fabric.models.loader import OpenedModel
from fabric.models.progress import Progress
from fabric.models.weight_layout import WeightLayout, stored_bytes
from kernels.ops import Backend


class WeightCopies:
    """Writes groups in order, in pieces, between which ``keep_on`` may raise to give up."""

    def __init__(
        self, opened: OpenedModel, packer: Backend, progress: Progress, keep_on: Callable[[], None]
    ) -> None:
        self._opened = opened
        self._packer = packer
        self._progress = progress
        self._keep_on = keep_on

    @property
    def _layout(self) -> WeightLayout:
        return self._opened.layout

    def pack(self, write: WriteAt, on_group: Callable[[int], None] | None = None) -> None:
        """Read and pack the parameters one by one; at most two of them are in memory.

        Args:
            write: Takes their bytes.
            on_group: Hears of each group when all of it is written.

        Raises:
            CheckpointError: The files have changed, or can't be read.
        """
        num_layers = len(self._layout.groups) - 1
        with self._opened.reading(self._packer) as source:
            for index, group in enumerate(self._layout.groups):
                for offset, values in stored_bytes(group, source.group(index)):
                    self._write_pieces(write, offset, values.numpy().data)
                self._progress.update("load weights", index, num_layers)
                if on_group is not None:
                    on_group(index)

    def copy(
        self, image: HostImage, target: DeviceWeights, on_group: Callable[[int], None]
    ) -> None:
        """Copy an image.

        Raises:
            SourceError: It is truncated, or can't be read.
        """
        image.check()
        for index, group in enumerate(self._layout.groups):
            for start in range(group.start, group.end, PIECE_BYTES):
                self._keep_on()
                end = min(start + PIECE_BYTES, group.end)
                target.fill(start, end, partial(image.read, start))
            on_group(index)

    def _write_pieces(self, write: WriteAt, offset: int, data: memoryview) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            self._keep_on()
            write(offset + start, data[start : start + PIECE_BYTES])
