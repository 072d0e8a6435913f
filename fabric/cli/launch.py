"""Starts a fabric on Ray for a command, shows how far it is, and ends all of it afterwards."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fabric.client import Client, RequestError
from fabric.core.errors import FabricError
from fabric.core.status import ModelState
from fabric.serve.environment import prepare_environment

if TYPE_CHECKING:
    from fabric.config import FabricConfig
    from fabric.serve.app import DeployedFabric
    from fabric.serve.controller import Directory

POLL_PERIOD_S = 0.1
SERVE_POLL_PERIOD_S = 1.0
PROBE_TIMEOUT_S = 2.0


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
        # Ray reads the environment when it is imported, so not before now.
        from fabric.serve.app import DeployedFabric

        fabric = DeployedFabric(config)
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
        self.progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._lines: dict[str, TaskID] = {}

    def show(self, name: str, stage: str, done: int = 0, total: int | None = None) -> None:
        """Show how far a thing's start is; where nobody watches, print each new stage once."""
        if name not in self._lines:
            self._lines[name] = self.progress.add_task(name, total=None)
        line = self._lines[name]
        self.progress.update(
            line, description=f"{name}: {stage}", completed=done, total=total or None
        )

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
            name, message = next(iter(failures.items()))
            raise StartError(f"{name} could not be started: {message}")
        if len(directory.groups) == len(config.groups) and directory.routers:
            target = directory.routers[0]
            if _answers(target, config):
                return target
        time.sleep(POLL_PERIOD_S)


def _show_directory(directory: "Directory", config: "FabricConfig", display: StartDisplay) -> None:
    ready = {group.name for group in directory.groups}
    for group in config.groups:
        name = f"group {group.name} ({', '.join(group.models)})"
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


def _answers(target: str, config: "FabricConfig") -> bool:
    """Whether the router knows every model as ready."""
    tls = None
    with Client(target, tls=tls, timeout_s=PROBE_TIMEOUT_S) as client:
        try:
            models = client.models()
        except RequestError:
            return False
    ready = {model.card.model for model in models if model.state is ModelState.READY}
    return ready.issuperset(model.id for model in config.models)
