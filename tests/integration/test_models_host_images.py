"""Images of weights among real processes, which also get killed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.engine.host_weights import HostImage, HostStore, WriteAt
from fabric.models.config import ModelConfig
from tests.unit.tiny_models import TINY, random_tensors, save_folder

pytestmark = pytest.mark.dist

NUM_BYTES = 3 * 2**20
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

image = HostStore([Path(sys.argv[1])]).fetch("model", len(content), write, keep_on)
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

    def __init__(self, script: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)],
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


def start(started: list[Process], folder: Path, script: str = USER) -> Process:
    started.append(Process(script, folder))
    return started[-1]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fetch_here(folder: Path, name: str = "model") -> HostImage:
    def write(write_at: WriteAt) -> None:
        write_at(0, memoryview(CONTENT))

    return HostStore([folder]).fetch(name, NUM_BYTES, write, lambda: None)


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


def test_what_a_killed_writer_left_is_gone_after_any_other_fetch(
    tmp_path: Path, started: list[Process]
):
    writer = start(started, tmp_path)
    assert writer.says() == "half"
    writer.kill()
    assert names(tmp_path) == {"model.part", "model.lock"}
    image = fetch_here(tmp_path, "another")
    assert names(tmp_path) == {"another.weights"}
    image.close()


def test_a_killed_user_leaves_an_image_that_serves_again_or_is_removed(
    tmp_path: Path, started: list[Process]
):
    user = start(started, tmp_path)
    assert user.says() == "half"
    user.go_on()
    assert user.says() == "has written"
    user.kill()
    image = fetch_here(tmp_path)
    assert not image.was_written
    image.close()
    assert names(tmp_path) == set()


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
    assert names(tmp_path / "images") == set()
