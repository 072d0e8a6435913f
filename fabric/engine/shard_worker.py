"""A shard worker's life: join the gang, form groups, open the models, run iterations, end."""

import contextlib
import logging
import socket
import time
from dataclasses import dataclass, replace

from fabric.core.errors import FabricError, GroupError, ProtocolError
from fabric.core.weights import WeightResult
from fabric.engine.cores import share_cores
from fabric.engine.executor import Finished
from fabric.engine.settings import WorkerSettings
from fabric.engine.shard_frames import (
    VERSION,
    Begin,
    Challenge,
    End,
    Failed,
    Join,
    Move,
    Moved,
    Opened,
    Ran,
    Run,
    ShardLink,
)
from fabric.engine.worker import Worker, WorkerPlace
from fabric.models.progress import Progress
from fabric.parallel.formation import join, make_group
from fabric.parallel.mesh import Axis, Mesh
from fabric.parallel.rendezvous import Rendezvous
from fabric.parallel.timed import TimedGroup
from fabric.rpc.secret import Role, new_nonce, prove
from fabric.scheduler.output import StepResult

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """Which rank of which gang a worker is; the addresses are the driver's."""

    worker: WorkerSettings
    mesh: Mesh
    rank: int
    epoch: int
    secret: str
    driver: tuple[str, int]
    rendezvous: tuple[str, int]
    layer_split: tuple[int, ...] | None = None


def run_shard(settings: ShardSettings, progress: Progress | None = None) -> None:
    """Be one rank of a gang until the driver closes the connection, or a peer is lost.

    Raises:
        GroupError: The gang could not be joined.
    """
    with socket.create_connection(settings.driver, timeout=CONNECT_TIMEOUT_S) as connection:
        connection.settimeout(None)
        link = ShardLink(connection)
        join_driver(link, settings)
        try:
            _work(link, settings, progress)
        except OSError as error:
            logger.info("rank %d ends: %s", settings.rank, error)
        except FabricError as error:
            logger.warning("rank %d fails: %s", settings.rank, error.message)
            with contextlib.suppress(OSError):
                link.send(Failed(type(error).__name__, error.message))


def join_driver(link: ShardLink, settings: ShardSettings) -> None:
    """Prove to the driver that this is a rank of its gang.

    Raises:
        GroupError: It is no driver of ours.
    """
    challenge = link.receive()
    if not isinstance(challenge, Challenge) or challenge.version != VERSION:
        raise GroupError("the driver speaks another protocol")
    nonce = new_nonce()
    proof = prove(settings.secret, Role.SHARD, challenge.nonce, nonce)
    link.send(Join(VERSION, settings.epoch, settings.rank, nonce, proof))


def _work(link: ShardLink, settings: ShardSettings, progress: Progress | None) -> None:
    mesh, rank = settings.mesh, settings.rank
    rendezvous = Rendezvous(settings.rendezvous, settings.epoch, secret=settings.secret)
    with contextlib.ExitStack() as stack:
        stack.callback(rendezvous.close)
        stack.callback(join(rendezvous, rank).close)
        tensor = TimedGroup(make_group(mesh, Axis.TENSOR, rank, rendezvous))
        stack.callback(tensor.close)
        pipeline = TimedGroup(make_group(mesh, Axis.PIPELINE, rank, rendezvous))
        stack.callback(pipeline.close)
        place = WorkerPlace(mesh.parallel, tensor, pipeline, settings.layer_split)
        worker = Worker(_with_cores(settings), progress, place)
        stack.callback(worker.close, leaves_parked=True)
        link.send(Opened(worker.models))
        begin = link.receive()
        if not isinstance(begin, Begin):
            raise ProtocolError(f"the driver said {type(begin).__name__} instead of Begin")
        worker.allocate(begin.memory, lambda result: _report_moved(link, result))
        _run_iterations(link, worker, (tensor, pipeline))
        worker.close()


def _with_cores(settings: ShardSettings) -> WorkerSettings:
    """The worker's settings with its share of the host's cores, on which it stays from now on."""
    worker, mesh = settings.worker, settings.mesh
    (own,) = (ranks for ranks in mesh.hosts(tuple(range(mesh.size))) if settings.rank in ranks)
    num_threads = share_cores(own.index(settings.rank), len(own), worker.num_threads)
    return replace(worker, num_threads=num_threads)


def _report_moved(link: ShardLink, result: Finished) -> None:
    if isinstance(result, WeightResult):
        moved = Moved(weights=(result,))
    else:
        moved = Moved(transfers=(result,))
    with contextlib.suppress(OSError):  # the thread that receives ends the worker
        link.send(moved)


def _run_iterations(link: ShardLink, worker: Worker, groups: tuple[TimedGroup, ...]) -> None:
    execute_s = 0.0
    while True:
        match link.receive():
            case Run(output):
                start_s = time.perf_counter()
                result = worker.execute(output)
                execute_s += time.perf_counter() - start_s
                if worker.answers:
                    link.send(_answer(result, execute_s, groups))
            case Move(orders):
                worker.move(orders)
            case End():
                return
            case frame:
                raise ProtocolError(f"the driver said {type(frame).__name__} instead of Run")


def _answer(result: StepResult, execute_s: float, groups: tuple[TimedGroup, ...]) -> Ran:
    return Ran(
        result,
        execute_s,
        num_collectives=sum(group.traffic.calls.total() for group in groups),
        collective_bytes=sum(group.traffic.num_bytes.total() for group in groups),
        collective_s=sum(group.elapsed_s for group in groups),
    )
