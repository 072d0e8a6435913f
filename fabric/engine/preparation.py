"""Brings the first weights to the device, and measures those models whose times are needed."""

import logging

from fabric.core.clock import Clock
from fabric.core.errors import CheckpointError
from fabric.core.profile import Profile
from fabric.core.weights import WeightMove, WeightOrder, WeightResult, WeightState
from fabric.engine.executor import ReadyExecutor
from fabric.engine.profile_store import find_profile
from fabric.engine.settings import EngineSettings
from fabric.kv.slabs import SlabPool
from fabric.kv.transfer import WorkerOrders
from fabric.scheduler.residency import Residency

logger = logging.getLogger(__name__)

_WAIT_S = 0.05


def load_weights(executor: ReadyExecutor, model: int) -> None:
    """Bring one model's weights to the device, and wait until all of them are there.

    It is for workers that nobody else uses and whose weights nobody decides about: tools that
    measure, and schedulers made without a :class:`fabric.scheduler.presence.Presence`.

    Args:
        executor: Drives the workers.
        model: The model's place among the executor's; each can be loaded once.

    Raises:
        CheckpointError: The weights can't be loaded.
        GroupError: The workers can't go on.
    """
    # A residency's numbers go upwards from 0, and none may be used twice.
    order = WeightOrder(-1 - model, model, WeightMove.LOAD)
    executor.move(WorkerOrders(weights=(order,)))
    is_there = False
    while not is_there:
        for result in executor.take_finished(_WAIT_S):
            assert isinstance(result, WeightResult), "nobody has moved blocks yet"
            if result.error:
                raise CheckpointError(f"{executor.models[model].card.model}: {result.error}")
            is_there = result.is_last


class Preparation:
    """What an engine does before its first request, while nobody else uses the workers."""

    def __init__(
        self,
        settings: EngineSettings,
        executor: ReadyExecutor,
        residency: Residency,
        slabs: SlabPool,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._residency = residency
        self._slabs = slabs
        self._clock = clock

    def run(self) -> tuple[Profile | None, ...]:
        """Load what is to be loaded at first; each model's profile, None where none is needed.

        A model that has to be measured is brought to the device for it, in others' place if it
        must be, and what had to leave is brought back.

        Raises:
            CheckpointError: Weights can't be loaded.
            ConfigError: A profile's file is wrong.
            GroupError: The workers can't go on.
        """
        self._settle()
        number_of_models = range(len(self._executor.models))
        at_first = [number for number in number_of_models if self._is_resident(number)]
        profiles = tuple(self._profile_of(number) for number in number_of_models)
        for number in at_first:
            if not self._is_resident(number):
                self._bring(number)
        return profiles

    def _profile_of(self, number: int) -> Profile | None:
        return find_profile(
            self._settings,
            self._executor,
            number,
            is_needed=self._settings.needs_times,
            prepare=lambda: self._bring(number),
        )

    def _is_resident(self, number: int) -> bool:
        return self._residency.state(number) is WeightState.RESIDENT

    def _bring(self, number: int) -> None:
        if not self._is_resident(number):
            self._residency.ask(number, WeightState.RESIDENT, None, self._clock.now())
            self._settle()
        assert self._is_resident(number), "weights that nobody stands in the way of come"

    def _settle(self) -> None:
        """Let weights move until none is to move any more."""
        while True:
            orders = self._residency.plan((), self._clock.now())
            if orders:
                self._executor.move(
                    WorkerOrders(weights=orders, punched=self._slabs.take_punched())
                )
            elif not self._residency.has_work:
                return
            for result in self._executor.take_finished(_WAIT_S):
                assert isinstance(result, WeightResult), "nobody has moved blocks yet"
                self._residency.finish(result, self._clock.now())
            for number, problem in self._residency.take_failed():
                raise CheckpointError(f"{self._executor.models[number].card.model}: {problem}")
