"""Starts a fabric on Ray for a command, shows how far it is, and ends all of it afterwards."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fabric.core.errors import FabricError
from fabric.serve.environment import prepare_environment

if TYPE_CHECKING:
    from fabric.config import FabricConfig
    from fabric.serve.app import DeployedFabric
    from fabric.serve.directory import Directory

POLL_PERIOD_S = 0.1
SERVE_POLL_PERIOD_S = 1.0


class StartError(FabricError):
    """The fabric could not be started."""


@contextmanager
def launched(config: "FabricConfig", console: Console) -> Iterator[str]:
    """Start a fabric, wait until every model answers, and yield its gRPC address.

    SIGTERM ends it as Ctrl-C does.

    Raises:
        StartError: A device group or a router could not be started; says why.
    """
    prepare_environment(config.ray.address)
    display = StartDisplay(console)
    display.progress.start()
    fabric = None
    try:
        display.show("Ray", "starting")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # Ray reads the environment when it is imported, so not before now.
        from fabric.serve.app import DeployedFabric

        fabric = DeployedFabric(config)
        # Ray has put a handler of its own in its place.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        display.finish("Ray")
        target = _wait_until_ready(fabric, config, display)
        display.progress.stop()
        yield target
    finally:
        display.progress.stop()
        if fabric is not None:
            fabric.stop()


class StartDisplay:
    """A line for each thing that is being started."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._lines: dict[str, TaskID] = {}
        self._stages: dict[str, str] = {}

    def show(self, name: str, stage: str, done: int = 0, total: int | None = None) -> None:
        """Show how far a thing's start is; where nobody watches, print each new stage once."""
        if name not in self._lines:
            self._lines[name] = self.progress.add_task(name, total=None)
        line = self._lines[name]
        self.progress.update(
            line, description=f"{name}: {stage}", completed=done, total=total or None
        )
        if not self._console.is_terminal and self._stages.get(name) != stage:
            self._stages[name] = stage
            self._console.print(f"{name}: {stage}", markup=False, highlight=False)

    def finish(self, name: str) -> None:
        """Show that a thing has started."""
        self.show(name, "ready", 1, 1)


def _wait_until_ready(
    fabric: "DeployedFabric", config: "FabricConfig", display: StartDisplay
) -> str:
    next_look_s = 0.0
    while True:
        directory = fabric.directory()
        _show_directory(directory, config, display)
        failures = directory.failures
        if time.monotonic() > next_look_s:
            failures = {**fabric.failures(), **failures}
            next_look_s = time.monotonic() + SERVE_POLL_PERIOD_S
        if failures:
            part, message = next(iter(failures.items()))
            raise StartError(f"{part} could not be started: {message}")
        ready = [router.address for router in directory.routers if router.is_ready]
        if ready:
            return ready[0]
        time.sleep(POLL_PERIOD_S)


def _show_directory(directory: "Directory", config: "FabricConfig", display: StartDisplay) -> None:
    ready = {group.name for group in directory.groups}
    for group in config.groups:
        name = f"group {group.name} ({', '.join(group.model_ids)})"
        loading = directory.loading.get(group.name)
        if group.name in ready:
            display.finish(name)
        elif loading is not None:
            display.show(name, loading.stage, loading.done, loading.total)
        else:
            display.show(name, "waiting for a process")
    if directory.routers:
        display.finish("router")
    else:
        display.show("router", "starting")
