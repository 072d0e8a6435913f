"""What other threads ask an engine, answered on the engine's own thread."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fabric.core.errors import RequestError
from fabric.engine.engine import Engine

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """A function of the engine, and where its result goes."""

    ask: Callable[[Engine], T]
    answer: "Future[T]" = field(default_factory=Future)

    def put_to(self, engine: Engine) -> None:
        """Ask; on the engine's thread, between two iterations."""
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(self.ask(engine))
        except Exception as error:
            # It is the asker's; requests go on.
            self.answer.set_exception(error)

    def refuse(self, error: RequestError) -> None:
        """Answer with an error."""
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(error)
