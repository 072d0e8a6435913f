"""The engine as the link to routers sees it."""

from concurrent.futures import Future
from typing import Protocol

from fabric.core.request import GenerationRequest, LoadReport, ModelLoad, ServedModel
from fabric.core.status import RequestStatus
from fabric.core.weights import WeightState
from fabric.scheduler.policies import PolicyConfig


class GroupEngine(Protocol):
    """Runs requests; every method may be called from the link's thread, and none waits."""

    def submit(self, request: GenerationRequest) -> None:
        """Take a request; a RequestError is raised at once or published later as its output."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a request and free what it holds; an unknown id is ignored."""
        ...

    def report(self) -> LoadReport:
        """The load now."""
        ...

    def served(self) -> tuple[ServedModel, ...]:
        """The models that requests may name."""
        ...

    def explain(self) -> "Future[tuple[RequestStatus, ...]]":
        """Where the unfinished requests are, after the iteration that runs now."""
        ...

    def set_policy(self, config: PolicyConfig) -> "Future[tuple[str, str]]":
        """Schedule by another policy from the next iteration on; the names before and after."""
        ...

    def set_residence(
        self, model: str, state: WeightState | None, pinned: bool | None
    ) -> "Future[ModelLoad]":
        """Bring a model's weights to COLD, HOST or RESIDENT, and pin them or not; None: as is.

        The future has how it stands after the iteration that runs now: moves take longer.
        It fails with InvalidRequest if the model could never be there.
        """
        ...
