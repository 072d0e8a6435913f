"""How long-running loading tells what it is doing."""

from typing import Protocol


class Progress(Protocol):
    """Hears how far a stage is; called often, so it must return at once."""

    def update(self, stage: str, done: int, total: int | None) -> None:
        """Note that ``done`` of ``total`` units of ``stage`` are finished; None: unknown."""
        ...


class NoProgress:
    """Tells nobody."""

    def update(self, stage: str, done: int, total: int | None) -> None:
        """Ignore the news."""
