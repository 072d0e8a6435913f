"""torch.cuda as far as the engine uses it: all that it is given to do goes into a log."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass


class FakeCuda:
    """Streams that do at once what they are given, and events that have passed when asked often."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.num_events = 0
        self.num_streams = 0
        self.num_queries = 0
        self.register_error = 0

    def Event(self) -> "FakeEvent":  # noqa: N802
        self.num_events += 1
        return FakeEvent(self, f"event {self.num_events}")

    def Stream(self) -> "FakeStream":  # noqa: N802
        """What copies between host and device, then what moves within the device, and so on."""
        self.num_streams += 1
        return FakeStream(self, "copies" if self.num_streams % 2 else "moves")

    def current_stream(self) -> "FakeStream":
        return FakeStream(self, "iterations")

    @contextlib.contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        self.log.append(f"into {stream.name}")
        yield
        self.log.append("out again")

    def cudart(self) -> "FakeCuda":
        return self

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        self.log.append(f"pin {num_bytes}")
        return self.register_error

    def empty_cache(self) -> None:
        self.log.append("empty cache")


@dataclass
class FakeEvent:
    cuda: FakeCuda
    name: str

    def record(self, stream: "FakeStream") -> None:
        self.cuda.log.append(f"{self.name} behind {stream.name}")

    def query(self) -> bool:
        self.cuda.num_queries += 1
        return self.cuda.num_queries > 3

    def synchronize(self) -> None:
        self.cuda.log.append(f"host waits for {self.name}")


@dataclass
class FakeStream:
    cuda: FakeCuda
    name: str

    def wait_event(self, event: FakeEvent) -> None:
        self.cuda.log.append(f"{self.name} wait for {event.name}")

    def synchronize(self) -> None:
        self.cuda.log.append(f"host waits for {self.name}")
