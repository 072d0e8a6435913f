"""Images of weights among real processes, which also get killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabric.engine import image_keeper
from fabric.engine.host_weights import HostImage, HostStore, WriteAt
from fabric.models.config import ModelConfig
from tests.unit.tiny_models import TINY, random_tensors, save_folder

pytestmark = pytest.mark.dist

NUM_BYTES = 3 * 2**20
DEADLINE_S = 10.0
SHORT_S, CHURN_S = 0.3, 1.0
CONTENT = bytes(range(256)) * (NUM_BYTES // 256)

# Says what it does line by line, and waits for a line before it goes on.
USER = f"""
import sys
from pathlib import Path
from fabric.engine.host_weights import HostStore

content = bytes(range(256)) * {NUM_BYTES // 256}
half = len(content) // 2

def tell(what):
    print(what, flush=True)
    sys.stdin.readline()

def write(write_at):
    write_at(0, memoryview(content)[:half])
    tell("half")
    write_at(half, memoryview(content)[half:])

waits = []

def keep_on():
    if not waits:
        waits.append(True)
        print("waits", flush=True)

store = HostStore([Path(sys.argv[1])], float(sys.argv[2]))
image = store.fetch("model", len(content), write, keep_on)
read = bytearray(len(content))
image.read(0, memoryview(read))
assert read == content
tell("has written" if image.was_written else "shares")
image.close()
print("has left", flush=True)
"""

HOLDER = """
import json, sys
from pathlib import Path
import torch
from fabric.engine.held_weights import HeldWeights
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.models.loader import RankPlace
from fabric.models.progress import NoProgress
from kernels.dispatch import select_backend
from tests.unit.tiny_models import OneSequence

torch.set_num_threads(1)
folder = Path(sys.argv[1])
settings = ModelSettings(model="tiny", source=str(folder / "model"))
worker = WorkerSettings(models=(settings,), cache_dir=folder, host_weight_dir=folder / "images")
backend = select_backend("cpu", num_threads=1)
held = HeldWeights(settings, worker, backend, RankPlace.alone(), NoProgress())
print("ready", flush=True)
sys.stdin.readline()
num_bytes = held.fetch()
held.begin_load()
held.load(lambda: None)
logits = OneSequence(held.model, held.dtype).logits([1, 2, 3])
print(json.dumps([num_bytes, logits.double().sum().item()]), flush=True)
sys.stdin.readline()
held.close()
"""


class Process:
    """A script that is told when to go on."""

    def __init__(self, script: str, folder: Path, linger_s: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder), str(linger_s)],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def says(self) -> str:
        return self._stdout.readline().strip()

    def go_on(self) -> None:
        self._stdin.write("\n")
        self._stdin.flush()

    def kill(self) -> None:
        """As kill -9 does."""
        self._process.kill()
        self._process.communicate()

    def leave(self) -> None:
        self.go_on()
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()


def start(
    started: list[Process], folder: Path, script: str = USER, linger_s: float = 30.0
) -> Process:
    started.append(Process(script, folder, linger_s))
    return started[-1]


def user_of_image(started: list[Process], folder: Path, linger_s: float = 30.0) -> Process:
    """A process that has the image."""
    user = start(started, folder, linger_s=linger_s)
    said = user.says()
    if said == "half":
        user.go_on()
        said = user.says()
    assert said in ("has written", "shares")
    return user


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def keepers(folder: Path) -> list[int]:
    """The processes that keep the folder, once they have left those that have started them."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0")
            if image_keeper.__file__ in words and str(folder) in words:
                pid = int(entry.name)
                found += [pid] if os.getsid(pid) != pid else []
    return found


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def only_keeper(folder: Path) -> int:
    """The one process that keeps the folder, as soon as it is there."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = keepers(folder)
        return bool(found)

    wait_until(is_there)
    (keeper,) = found
    return keeper


def fetch_here(folder: Path, linger_s: float = 30.0) -> HostImage:
    def write(write_at: WriteAt) -> None:
        write_at(0, memoryview(CONTENT))

    return HostStore([folder], linger_s).fetch("model", NUM_BYTES, write, lambda: None)


def test_one_of_several_processes_writes_and_the_last_one_removes(
    tmp_path: Path, started: list[Process]
):
    writer = start(started, tmp_path)
    assert writer.says() == "half"
    others = [start(started, tmp_path) for _ in range(2)]
    assert [other.says() for other in others] == ["waits", "waits"]
    writer.go_on()
    assert writer.says() == "has written"
    assert [other.says() for other in others] == ["shares", "shares"]
    assert names(tmp_path) == {"model.weights"}
    for process in (writer, others[0]):
        process.leave()
        assert names(tmp_path) == {"model.weights"}
    others[1].leave()
    assert names(tmp_path) == set()


def test_a_writer_that_is_killed_half_way_is_replaced_by_one_that_waits(
    tmp_path: Path, started: list[Process]
):
    writer = start(started, tmp_path)
    assert writer.says() == "half"
    other = start(started, tmp_path)
    assert other.says() == "waits"
    writer.kill()
    assert other.says() == "half"
    other.go_on()
    assert other.says() == "has written"
    other.leave()
    assert names(tmp_path) == set()


def test_what_a_killed_writer_left_is_gone_after_a_while(tmp_path: Path, started: list[Process]):
    writer = start(started, tmp_path / "images", linger_s=SHORT_S)
    assert writer.says() == "half"
    only_keeper(tmp_path / "images")
    writer.kill()
    wait_until(lambda: not (tmp_path / "images").exists())


def test_a_killed_user_leaves_an_image_to_who_comes_soon(tmp_path: Path, started: list[Process]):
    user_of_image(started, tmp_path).kill()
    image = fetch_here(tmp_path)
    assert not image.was_written
    image.close()
    assert names(tmp_path) == set()


def test_a_killed_user_leaves_nothing_when_nobody_comes(tmp_path: Path, started: list[Process]):
    folder = tmp_path / "images"
    user = user_of_image(started, folder, SHORT_S)
    keeper = only_keeper(folder)
    assert os.getsid(keeper) != os.getsid(0)
    user.kill()
    wait_until(lambda: not keepers(folder))
    assert not folder.exists()


def test_an_image_outlives_the_time_to_linger_while_one_of_its_users_lives(
    tmp_path: Path, started: list[Process]
):
    first, second = (user_of_image(started, tmp_path, SHORT_S) for _ in range(2))
    keeper = only_keeper(tmp_path)
    first.kill()
    # The keeper has found what nobody holds, and has had the time to remove it.
    (tmp_path / "unused.weights").touch()
    wait_until(lambda: names(tmp_path) == {"model.weights"})
    assert keepers(tmp_path) == [keeper]
    image = fetch_here(tmp_path)
    assert not image.was_written
    image.close()
    second.leave()
    assert names(tmp_path) == set()
    wait_until(lambda: not keepers(tmp_path))


def test_the_next_fetch_starts_a_keeper_in_place_of_one_that_was_killed(
    tmp_path: Path, started: list[Process]
):
    first = user_of_image(started, tmp_path, SHORT_S)
    killed = only_keeper(tmp_path)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not keepers(tmp_path))
    second = user_of_image(started, tmp_path, SHORT_S)
    assert only_keeper(tmp_path) != killed
    for user in (first, second):
        user.kill()
    wait_until(lambda: not keepers(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_images_that_come_and_go_all_the_time_are_never_without_a_keeper_for_long(tmp_path: Path):
    folder = tmp_path / "images"
    left = folder / "left.weights"
    until_s = time.monotonic() + CHURN_S
    while time.monotonic() < until_s:
        image = fetch_here(folder, linger_s=0.0)
        left.touch()
        wait_until(lambda: not left.exists())
        image.close()
    wait_until(lambda: not keepers(folder) and not folder.exists())


def test_two_workers_read_and_pack_a_model_once(tmp_path: Path, started: list[Process]):
    save_folder(tmp_path / "model", TINY, random_tensors(ModelConfig.from_hf(TINY)))
    workers = [start(started, tmp_path, HOLDER) for _ in range(2)]
    assert [worker.says() for worker in workers] == ["ready", "ready"]
    for worker in workers:
        worker.go_on()
    told = [json.loads(worker.says()) for worker in workers]
    moved, sums = sorted(told[i][0] for i in range(2)), {told[i][1] for i in range(2)}
    assert moved[0] == 0 < moved[1]
    assert len(sums) == 1
    for worker in workers:
        worker.leave()
    wait_until(lambda: not (tmp_path / "images").exists())
