"""Starts a gang of shard workers, wherever they are to run."""

import multiprocessing
import secrets
from multiprocessing.process import BaseProcess
from typing import Protocol

from fabric.core.plan import ParallelConfig
from fabric.engine.gang import GangExecutor, GangSettings
from fabric.engine.settings import EngineSettings
from fabric.engine.shard_worker import ShardSettings, run_shard
from fabric.parallel.mesh import Device, Mesh


class ShardHost(Protocol):
    """Where shard workers run: one for each device."""

    def devices(self) -> tuple[Device, ...]:
        """The devices in the order of the ranks; ranks on one host share its name."""
        ...

    def start(self, settings: ShardSettings) -> None:
        """Start a worker that runs ``run_shard``, and return at once."""
        ...

    def has_ended(self) -> bool:
        """Whether a worker that was started has ended."""
        ...

    def stop(self) -> None:
        """End all workers, whatever they are doing."""
        ...


class ProcessShardHost:
    """Workers as processes of this host, children of this one.

    ``hosts`` names a host for each rank: ranks of different ones connect over TCP even here.
    """

    def __init__(self, parallel: ParallelConfig, hosts: tuple[str, ...] | None = None) -> None:
        self._hosts = hosts or ("localhost",) * parallel.num_devices
        self._context = multiprocessing.get_context("forkserver")
        # The workers' imports take seconds: once is enough for all of them.
        self._context.set_forkserver_preload([run_shard.__module__])
        self._processes: list[BaseProcess] = []

    @property
    def pids(self) -> list[int]:
        """The workers' process ids, in the order of the ranks."""
        return [process.pid for process in self._processes if process.pid is not None]

    @property
    def num_alive(self) -> int:
        """Workers that have not ended."""
        return sum(process.is_alive() for process in self._processes)

    def devices(self) -> tuple[Device, ...]:
        """One for each rank."""
        return tuple(Device(host, i) for i, host in enumerate(self._hosts))

    def start(self, settings: ShardSettings) -> None:
        """Start a process."""
        process = self._context.Process(target=run_shard, args=(settings,), daemon=True)
        process.start()
        self._processes.append(process)

    def has_ended(self) -> bool:
        """Whether a process is gone."""
        return self.num_alive < len(self._processes)

    def stop(self) -> None:
        """Kill the processes that still run."""
        for process in self._processes:
            process.kill()
            process.join()


def start_gang(
    settings: EngineSettings, host: ShardHost, epoch: int = 1, driver_host: str = "127.0.0.1"
) -> GangExecutor:
    """Start a worker on each of a host's devices, and wait until all know their models.

    Args:
        settings: The models, and how they are cut.
        host: Where the workers run.
        epoch: Which incarnation of the gang this is; it grows.
        driver_host: The address of this process that the workers can reach.

    Raises:
        ConfigError: A model can't be cut so, or a device has too little memory.
        SourceError: A model's files can't be fetched.
        CheckpointError: They don't fit the model.
        GroupError: A worker could not start in another way.
    """
    mesh = Mesh(settings.parallel, host.devices())
    secret = secrets.token_hex(32)
    executor = GangExecutor(
        GangSettings(
            worker=settings.worker,
            epoch=epoch,
            secret=secret,
            num_ranks=mesh.size,
            num_batches=settings.parallel.pipeline,
            sampling_rank=mesh.size - settings.parallel.tensor,
            host=driver_host,
        )
    )
    try:
        for rank in range(mesh.size):
            host.start(
                ShardSettings(
                    worker=settings.worker,
                    mesh=mesh,
                    rank=rank,
                    epoch=epoch,
                    secret=secret,
                    driver=executor.address,
                    rendezvous=executor.rendezvous_address,
                    layer_split=settings.layer_split,
                )
            )
        executor.begin(host.has_ended)
    except BaseException:
        executor.close()
        host.stop()
        raise
    return executor
