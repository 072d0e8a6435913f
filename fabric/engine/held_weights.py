"""One model's weights in one worker: where they are, and how they move."""

import hashlib
import threading
from collections.abc import Callable

import torch

from fabric.core.errors import SourceError
from fabric.core.request import ModelCard
from fabric.core.sampling import GenerationDefaults
from fabric.core.weights import WeightState
from fabric.engine.arriving_weights import ArrivingWeights
from fabric.engine.device_weights import CpuWeights, CudaWeights, DeviceWeights
from fabric.engine.host_weights import HostImage, HostStore, default_folders
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.engine.weight_copies import WeightCopies
from fabric.models.config import ModelConfig
from fabric.models.loader import OpenedModel, RankPlace, open_model
from fabric.models.model import CausalModel
from fabric.models.progress import Progress
from fabric.models.shard import Shard
from fabric.models.sources import resolve_source
from fabric.models.weight_layout import BufferWeights
from kernels.dispatch import select_backend
from kernels.ops import Backend

# Changes when the same layout comes to mean other bytes.
IMAGE_VERSION = 1


class HeldWeights:
    """A model that is known, and whose weights come to the device and leave it again.

    The thread that runs iterations calls :meth:`begin_load`, :meth:`evict` and :meth:`drop`,
    which never wait; a copy thread calls :meth:`fetch` and :meth:`load`, one at a time, which
    take long and leave everything as it was when they fail. ``model`` is the same object
    throughout.
    """

    def __init__(
        self,
        settings: ModelSettings,
        worker: WorkerSettings,
        backend: Backend,
        place: RankPlace,
        progress: Progress,
    ) -> None:
        """Find or fetch the model's files, and open them; weights stay on disk.

        Raises:
            SourceError: The files can't be fetched.
            CheckpointError: They are malformed, or don't fit a supported model.
            ConfigError: The model can't be cut for its place, or is asked for too long sequences.
        """
        local = resolve_source(settings.source, worker.cache_dir, progress)
        self._opened: OpenedModel = open_model(
            local, backend, settings.dtype, settings.max_model_len, place, settings.quantization
        )
        self.card: ModelCard = self._opened.card(settings.model)
        self.model: CausalModel = self._opened.build(backend)
        # Iterations keep their threads while weights are packed.
        packer = select_backend(place.device.type, worker.backend, num_threads=1)
        assert packer.packing == backend.packing
        self._copies = WeightCopies(self._opened, packer, progress, self._keep_on)
        folder = worker.host_weight_dir
        self._store = HostStore([folder] if folder else default_folders(worker.cache_dir))
        self._image: HostImage | None = None
        self._device = place.device
        self._memory: DeviceWeights | None = None
        self._arriving: ArrivingWeights | None = None
        self._moving = threading.Lock()
        self._is_given_up = False
        self._is_alone = place.parallel.num_devices == 1

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return self._opened.config

    @property
    def defaults(self) -> GenerationDefaults:
        """The model's own sampling defaults."""
        return self._opened.defaults

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and KV."""
        return self._opened.dtype

    @property
    def max_model_len(self) -> int:
        """The longest sequence."""
        return self._opened.max_model_len

    @property
    def shard(self) -> Shard:
        """This rank's part."""
        return self._opened.part.shard

    @property
    def weight_bytes(self) -> int:
        """What this rank's weights take on the device."""
        return self._opened.layout.num_bytes

    @property
    def host_bytes(self) -> int:
        """What this rank's weights take in host memory, once for all processes."""
        return self._opened.layout.num_bytes

    def kv_block_shape(self, block_size: int) -> tuple[int, ...]:
        """The shape of one of this rank's KV blocks."""
        return self.model.kv_cache_shape(1, block_size)[1:]

    @property
    def state(self) -> WeightState:
        """Where the weights are: LOADING as soon as a load has begun, never FETCHING."""
        if self._memory is not None:
            return WeightState.LOADING if self._arriving is not None else WeightState.RESIDENT
        return WeightState.COLD if self._image is None else WeightState.HOST

    def fetch(self) -> int:
        """Bring the weights into host memory.

        Returns:
            How many bytes were read and packed; 0 if they were there, for another process too.

        Raises:
            CheckpointError: The files have changed, or can't be read.
            SourceError: There is no room, or the move was given up.
        """
        with self._moving:
            if self._image is not None:
                return 0
            image = self._store.fetch(
                _image_name(self._opened), self.host_bytes, self._copies.pack, self._keep_on
            )
            self._image = image
            return image.num_bytes if image.was_written else 0

    def begin_load(self) -> None:
        """Reserve device memory, so that iterations may begin; :meth:`load` must follow.

        They wait for each layer until it has arrived, and get a SourceError if it won't.

        Raises:
            SourceError: There is no memory.
        """
        assert self._memory is None, "evict comes first"
        self._memory = self._reserve()
        self._arriving = ArrivingWeights(BufferWeights(self._opened.layout, self._memory.tensor))
        self.model.attach(self._arriving)

    def load(self, on_started: Callable[[], None]) -> int:
        """Copy the weights to the device layer by layer, from host memory or else from disk.

        Args:
            on_started: Called once the first layer is there, and all that is outside of layers.

        Returns:
            How many bytes were copied.

        Raises:
            CheckpointError: The files have changed, or can't be read.
            SourceError: The image in host memory can't be read, or the move was given up.
        """
        with self._moving:
            memory, arriving = self._memory, self._arriving
            assert memory is not None, "begin_load comes first"
            assert arriving is not None
            try:
                self._copy(memory, arriving, on_started)
                memory.settle()
            except BaseException as error:
                arriving.fail(str(error))
                memory.settle()
                self._leave_device()
                raise
            self._arriving = None
            return self.weight_bytes

    def evict(self) -> None:
        """Free the device memory at once; no iteration may be under way."""
        assert self._arriving is None, "weights that are on their way can't be evicted"
        memory = self._memory
        self._leave_device()
        if memory is not None:
            memory.free()

    def drop(self) -> None:
        """Let go of the weights in host memory; no load may be under way."""
        assert self._arriving is None, "weights that are on their way can't be dropped"
        if self._image is not None:
            self._image.close()
            self._image = None

    def cancel(self) -> None:
        """Make moves of other threads, and iterations that wait for them, end soon in an error."""
        self._is_given_up = True
        if self._arriving is not None:
            self._arriving.fail("the worker ends")

    def close(self) -> None:
        """Give up moves, and free all memory."""
        self.cancel()
        with self._moving:
            self._leave_device()
            self.drop()

    def _leave_device(self) -> None:
        self.model.detach()
        self._memory = self._arriving = None

    def _reserve(self) -> DeviceWeights:
        if self._device.type == "cpu":
            return CpuWeights(self.weight_bytes)
        return CudaWeights(self.weight_bytes, self._device)

    def _copy(
        self, memory: DeviceWeights, arriving: ArrivingWeights, on_started: Callable[[], None]
    ) -> None:
        def on_group(index: int) -> None:
            arriving.arrive(memory.arrived())
            if index == 1:
                on_started()

        if self._image is not None:
            self._copies.copy(self._image, memory, on_group)
        elif self._is_alone:
            self._copies.pack(memory.write, on_group)
        else:
            # Files may turn out broken. Ranks that wait for each other in an iteration that has
            # begun couldn't all be told, so none begins before all layers are there.
            self._copies.pack(memory.write, lambda index: arriving.arrive(memory.arrived()))
            on_started()

    def _keep_on(self) -> None:
        if self._is_given_up:
            raise SourceError("moving weights was given up: the worker ends")


def _image_name(opened: OpenedModel) -> str:
    """Names what is in an image: which files, which part of them, and how it is laid out."""
    what = (IMAGE_VERSION, opened.stamps, opened.config, opened.part.shard, opened.layout)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]
