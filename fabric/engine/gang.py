"""The driver of a gang of shard workers: meets them, hands them iterations, notices their loss."""

import contextlib
import hmac
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from fabric.core.errors import (
    CheckpointError,
    ConfigError,
    FabricError,
    GroupError,
    PeerLost,
    ProtocolError,
    SourceError,
)
from fabric.core.weights import WeightMove, WeightOrder, WeightResult
from fabric.engine.executor import ExecutorCosts, Finished, HostedModel
from fabric.engine.gang_models import whole_model
from fabric.engine.gang_transfers import GangTransfers
from fabric.engine.memory_plan import DeviceMemory, plan_memory
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
    ShardFrame,
    ShardLink,
)
from fabric.kv.transfer import WorkerOrders
from fabric.parallel.rendezvous_server import RendezvousServer
from fabric.rpc.secret import NONCE_BYTES, Role, new_nonce, prove
from fabric.scheduler.output import SchedulerOutput, StepResult

GREETING_TIMEOUT_S = 5.0
JOIN_POLL_S = 0.5
FRAME_TIMEOUT_S = 2.0
WATCH_PERIOD_S = 0.2
# What a worker may fail with before the gang exists that the user can put right.
START_ERRORS: dict[str, type[FabricError]] = {
    error.__name__: error for error in (ConfigError, SourceError, CheckpointError)
}


@dataclass(frozen=True, slots=True)
class GangSettings:
    """Who belongs to a gang: ``num_ranks`` workers of one epoch that know the secret.

    ``num_batches`` iterations may be in flight; rank ``sampling_rank`` answers them. ``worker`` is
    what each loads.
    """

    worker: WorkerSettings
    epoch: int
    secret: str
    num_ranks: int
    num_batches: int
    sampling_rank: int
    host: str = "127.0.0.1"
    load_timeout_s: float = 600.0


# What leaves a rank's weights as they were where another rank's move has failed.
_UNDOING = {WeightMove.FETCH: WeightMove.DROP, WeightMove.LOAD: WeightMove.EVICT}


class GangExecutor:
    """An Executor over shard workers in other processes, on this host or on others.

    Make it, start the workers with its addresses, then call :meth:`begin`. A worker that dies,
    freezes or says that it failed ends the gang; a new one, with a new epoch, must be made.
    """

    def __init__(self, settings: GangSettings) -> None:
        self._settings = settings
        self._rendezvous = RendezvousServer(
            settings.host, epoch=settings.epoch, secret=settings.secret
        )
        self._listener = socket.create_server((settings.host, 0), backlog=settings.num_ranks)
        self._links: dict[int, ShardLink] = {}
        self._transfers = GangTransfers(settings.num_ranks)
        self._results: queue.SimpleQueue[Ran | GroupError | None] = queue.SimpleQueue()
        self._failure: GroupError | None = None
        self._is_closing = False
        self._watcher = threading.Thread(target=self._watch, name="gang", daemon=True)
        self._num_bytes = 0
        self._send_s = 0.0
        self._costs = ExecutorCosts()
        self._undoing: dict[int, WeightOrder] = {}
        self.models: tuple[HostedModel, ...] = ()
        self.memory: DeviceMemory

    @property
    def num_batches(self) -> int:
        """Iterations that may be in flight."""
        return self._settings.num_batches

    @property
    def runs_ahead(self) -> bool:
        """Whether there is one stage only, whose ranks all sample, and agree."""
        return self._settings.num_batches == 1

    @property
    def costs(self) -> ExecutorCosts:
        """What driving the workers has cost, as of the last answer."""
        return self._costs

    @property
    def failure(self) -> str | None:
        """Why the gang can't go on."""
        return None if self._failure is None else str(self._failure)

    @property
    def address(self) -> tuple[str, int]:
        """Where workers connect to be driven."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def rendezvous_address(self) -> tuple[str, int]:
        """Where workers find each other."""
        return self._rendezvous.address

    def begin(self, has_ended: Callable[[], bool]) -> None:
        """Wait until all workers have joined and know their models, and plan their memory.

        Args:
            has_ended: Whether a worker has ended, so that waiting for it is vain.

        Raises:
            ConfigError: A model can't be cut so, or a device has too little memory.
            SourceError: A model's files can't be fetched.
            CheckpointError: They don't fit the model.
            GroupError: A worker failed in another way, or did not come in time.
        """
        deadline = time.monotonic() + self._settings.load_timeout_s
        try:
            while len(self._links) < self._settings.num_ranks:
                self._accept(deadline, has_ended)
            opened = self._wait_until_opened(deadline)
        except (OSError, ProtocolError) as error:
            raise GroupError(f"a shard worker did not start: {error}") from error
        self.models = tuple(whole_model(parts) for parts in zip(*opened, strict=True))
        self.memory = plan_memory(self._settings.worker, [model.size for model in self.models])
        for link in self._links.values():
            # From now on a worker that stops in the middle of a frame is lost.
            link.set_timeout(FRAME_TIMEOUT_S)
            link.send(Begin(self.memory))
        self._watcher.start()

    def submit(self, output: SchedulerOutput) -> None:
        """Send an iteration to every worker."""
        self._broadcast(Run(output))

    def collect(self) -> StepResult | None:
        """Wait for the sampling rank's next answer."""
        ran = self._results.get()
        if ran is None:
            return None
        if isinstance(ran, GroupError):
            raise ran
        self._costs = ExecutorCosts(
            self._num_bytes,
            self._send_s,
            ran.execute_s,
            ran.num_collectives,
            ran.collective_bytes,
            ran.collective_s,
        )
        return ran.result

    def interrupt(self) -> None:
        """Let :meth:`collect` return None once."""
        self._results.put(None)

    def move(self, orders: WorkerOrders) -> None:
        """Send orders to every worker, behind the iterations in flight."""
        for order in orders.weights:
            if undoing := _UNDOING.get(order.move):
                self._undoing[order.number] = replace(order, move=undoing)
        self._broadcast(Move(orders))

    def take_finished(self, timeout_s: float = 0.0) -> list[Finished]:
        """The moves that all ranks have finished; what failed on some is undone on the others."""
        finished = self._transfers.take(timeout_s)
        for result in finished:
            if isinstance(result, WeightResult) and result.is_last:
                undoing = self._undoing.pop(result.number)
                if result.error:
                    self._broadcast(Move(WorkerOrders(weights=(undoing,))))
        return finished

    def close(self) -> None:
        """Tell the workers to end, and close all connections; they also end when theirs is lost."""
        if self._is_closing:
            return
        self._is_closing = True
        for link in self._links.values():
            if self._failure is None:  # else what is parked waits for the next gang
                with contextlib.suppress(OSError):
                    link.send(End())
            link.close()
        self._listener.close()
        self._rendezvous.close()

    def _broadcast(self, frame: ShardFrame) -> None:
        if self._failure is not None:
            raise self._failure
        start_s = time.perf_counter()
        data = next(iter(self._links.values())).encode(frame)
        for rank, link in self._links.items():
            try:
                link.send_bytes(data)
            except OSError:
                self._fail(PeerLost(rank))
                raise PeerLost(rank) from None
        self._num_bytes += len(data) * len(self._links)
        self._send_s += time.perf_counter() - start_s

    def _accept(self, deadline: float, has_ended: Callable[[], bool]) -> None:
        """Let one worker join, if one comes soon; one that can't prove itself is turned away."""
        self._listener.settimeout(JOIN_POLL_S)
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            if has_ended() or time.monotonic() > deadline:
                raise
            return
        connection.settimeout(GREETING_TIMEOUT_S)
        link, nonce = ShardLink(connection), new_nonce()
        try:
            link.send(Challenge(VERSION, nonce))
            join = link.receive()
            rank = self._check_join(join, nonce)
        except (OSError, ProtocolError):
            link.close()
            return
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        self._links[rank] = link

    def _check_join(self, join: object, nonce: bytes) -> int:
        settings = self._settings
        if not isinstance(join, Join) or len(join.nonce) != NONCE_BYTES:
            raise ProtocolError("a worker must join first")
        proof = prove(settings.secret, Role.SHARD, nonce, join.nonce)
        is_known = hmac.compare_digest(join.proof, proof)
        is_ours = (join.version, join.epoch) == (VERSION, settings.epoch)
        if not is_known or not is_ours or join.rank not in range(settings.num_ranks):
            raise ProtocolError(f"a worker of another gang: {join.rank}, epoch {join.epoch}")
        if join.rank in self._links:
            raise ProtocolError(f"rank {join.rank} has joined already")
        return join.rank

    def _wait_until_opened(self, deadline: float) -> list[tuple[HostedModel, ...]]:
        """The models as each rank knows them; the first that fails ends it for all."""
        opened: dict[int, tuple[HostedModel, ...]] = {}
        with selectors.DefaultSelector() as selector:
            for rank, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, rank)
            while len(opened) < len(self._links):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    missing = sorted(self._links.keys() - opened.keys())
                    raise GroupError(f"ranks {missing} took too long to start")
                opened.update({key.data: self._opened(key.data) for key, _ in ready})
        return [opened[rank] for rank in sorted(opened)]

    def _opened(self, rank: int) -> tuple[HostedModel, ...]:
        frame = self._links[rank].receive()
        if isinstance(frame, Failed):
            if error := START_ERRORS.get(frame.kind):
                raise error(frame.message)
            raise ProtocolError(f"rank {rank}: {frame.message}")
        if not isinstance(frame, Opened):
            raise ProtocolError(f"rank {rank} said {type(frame).__name__} while starting")
        return frame.models

    def _watch(self) -> None:
        """Take in what workers say, and notice those that are gone; runs on its own thread."""
        with selectors.DefaultSelector() as selector:
            for rank, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, rank)
            while self._failure is None and not self._is_closing:
                for key, _ in selector.select(WATCH_PERIOD_S):
                    self._take(key.data)
                if lost := self._rendezvous.lost(self._settings.epoch):
                    self._fail(PeerLost(int(lost[0].rpartition("-")[2])))

    def _take(self, rank: int) -> None:
        try:
            frame = self._links[rank].receive()
        except (OSError, ProtocolError) as error:
            self._fail(PeerLost(rank, f"is lost: {error}"))
            return
        if isinstance(frame, Ran) and rank == self._settings.sampling_rank:
            self._results.put(frame)
        elif isinstance(frame, Moved):
            self._transfers.add(rank, (*frame.transfers, *frame.weights))
        elif isinstance(frame, Failed):
            self._fail(GroupError(f"rank {rank}: {frame.message}"))
        else:
            self._fail(GroupError(f"rank {rank} said {type(frame).__name__}"))

    def _fail(self, error: GroupError) -> None:
        if self._failure is None and not self._is_closing:
            self._failure = error
            self._results.put(error)
            self._transfers.fail(error)
