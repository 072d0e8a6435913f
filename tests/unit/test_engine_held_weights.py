"""Weights come to the device and leave it, and what they compute stays the same to the bit."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fabric.core.errors import CheckpointError, ConfigError, SourceError
from fabric.core.plan import ParallelConfig
from fabric.core.weights import WeightState
from fabric.engine.held_weights import HeldWeights
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.models.config import ModelConfig
from fabric.models.loader import RankPlace, load_model
from fabric.models.progress import NoProgress
from fabric.models.sources import LocalModel
from fabric.parallel.group import SoloGroup
from fabric.parallel.local import LocalGroup
from kernels.dispatch import available_backends, select_backend
from kernels.reference import ReferenceBackend
from tests.unit.thread_ranks import on_ranks
from tests.unit.tiny_models import TINY, TINY_QWEN2, OneSequence, random_tensors, save_folder

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PROMPT = [1, 5, 90, 33, 2, 64, 7]
FOUR_LAYERS = {"num_hidden_layers": 4}
MODELS: dict[str, dict[str, object]] = {
    "Llama": TINY,
    "tied bfloat16": TINY | {"tie_word_embeddings": True, "torch_dtype": "bfloat16"},
    "Qwen2": TINY_QWEN2,
}
BACKEND = available_backends("cpu")[0]


class Bench:
    """A tiny checkpoint, and what holds its weights; all is closed at the end of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.held: list[HeldWeights] = []

    def save(self, raw: dict[str, object], tensors: dict[str, Tensor] | None = None) -> None:
        config = ModelConfig.from_hf(raw)
        dtype = getattr(torch, config.dtype)
        made = {name: tensor.to(dtype) for name, tensor in random_tensors(config).items()}
        save_folder(self.folder / "model", raw, made | (tensors or {}))

    def hold(self, place: RankPlace | None = None, backend: str | None = BACKEND) -> HeldWeights:
        settings = ModelSettings(model="tiny", source=str(self.folder / "model"))
        worker = WorkerSettings(
            models=(settings,),
            cache_dir=self.folder,
            host_weight_dir=self.images,
            backend=backend,
        )
        ops = select_backend("cpu", backend, num_threads=1)
        held = HeldWeights(settings, worker, ops, place or RankPlace.alone(), NoProgress())
        self.held.append(held)
        return held

    def expected(self) -> Tensor:
        """Logits of the model as the checkpoint alone gives it."""
        local = LocalModel(self.folder / "model", "hf", "")
        ops = select_backend("cpu", BACKEND, num_threads=1)
        loaded = load_model(local, ops, "auto", None, NoProgress())
        return OneSequence(loaded.model, loaded.dtype).logits(PROMPT)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for held in bench.held:
        held.close()
    assert not bench.images.exists() or not list(bench.images.iterdir())


def nothing() -> None:
    pass


def load(held: HeldWeights, on_started: Callable[[], None] = nothing) -> int:
    held.begin_load()
    return held.load(on_started)


def logits(held: HeldWeights) -> Tensor:
    return OneSequence(held.model, held.dtype).logits(PROMPT)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("raw", MODELS.values(), ids=MODELS.keys())
def test_logits_are_those_of_the_checkpoint_however_the_weights_came(
    bench: Bench, raw: dict[str, object]
):
    bench.save(raw)
    expected = bench.expected()
    held, other = bench.hold(), bench.hold()
    assert load(held) == held.weight_bytes
    assert torch.equal(logits(held), expected)
    held.evict()
    assert (held.fetch(), other.fetch()) == (held.host_bytes, 0)
    assert held.fetch() == 0
    for again in (held, other, held):
        assert load(again) == again.weight_bytes
        assert torch.equal(logits(again), expected)
        again.evict()
    held.drop()
    load(other)
    assert torch.equal(logits(other), expected)


def test_a_state_follows_the_moves(bench: Bench):
    bench.save(TINY)
    held, states = bench.hold(), []
    assert held.state is WeightState.COLD
    held.fetch()
    assert held.state is WeightState.HOST
    held.begin_load()
    assert held.state is WeightState.LOADING
    held.load(lambda: states.append(held.state))
    assert (states, held.state) == ([WeightState.LOADING], WeightState.RESIDENT)
    held.drop()
    assert held.state is WeightState.RESIDENT
    held.evict()
    assert held.state is WeightState.COLD


def test_what_is_known_before_anything_is_read(bench: Bench):
    bench.save(TINY)
    held = bench.hold(RankPlace(ParallelConfig(2, 1), 1, SoloGroup()))
    assert (held.card.model, held.card.vocab_size, held.max_model_len) == ("tiny", 96, 128)
    assert held.kv_block_shape(16) == (1, 2, 2, 16, 8)
    assert held.shard.is_last
    assert held.host_bytes == held.weight_bytes > 0


def test_a_model_that_cannot_be_cut_is_refused_at_once(bench: Bench):
    bench.save(TINY)
    with pytest.raises(ConfigError, match=r"parallel\.pipeline is 3"):
        bench.hold(RankPlace(ParallelConfig(3, 1), 0, SoloGroup()))


def test_stages_that_load_images_change_no_bit(bench: Bench):
    bench.save(TINY | FOUR_LAYERS | {"tie_word_embeddings": True})
    stages = [bench.hold(RankPlace(ParallelConfig(3, 1), i, SoloGroup())) for i in range(3)]
    for stage in stages:
        assert stage.fetch() == stage.host_bytes
        load(stage)
    models = [stage.model for stage in stages]
    assert torch.equal(OneSequence(models, torch.float32).logits(PROMPT), bench.expected())


def test_tensor_ranks_that_load_images_change_no_bit(bench: Bench):
    bench.save(TINY)
    local = LocalModel(bench.folder / "model", "hf", "")

    def run(group: LocalGroup) -> tuple[Tensor, Tensor]:
        place = RankPlace(ParallelConfig(1, 2), 0, group)
        held = bench.hold(place)
        assert held.fetch() == held.host_bytes
        load(held)
        ops = select_backend("cpu", BACKEND, num_threads=1)
        loaded = load_model(local, ops, "auto", None, NoProgress(), place)
        return logits(held), OneSequence(loaded.model, loaded.dtype).logits(PROMPT)

    for ours, expected in on_ranks(2, run):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("is_fetched", [True, False], ids=["from memory", "from disk"])
def test_an_iteration_runs_its_first_layer_before_the_others_have_come(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_fetched: bool
):
    bench.save(TINY | FOUR_LAYERS)
    held = bench.hold(backend="reference")
    if is_fetched:
        held.fetch()
    has_run = threading.Event()
    store_kv = ReferenceBackend.store_kv

    def recording(self: ReferenceBackend, *operands: Tensor) -> None:
        store_kv(self, *operands)
        has_run.set()

    monkeypatch.setattr(ReferenceBackend, "store_kv", recording)
    held.begin_load()
    with ThreadPoolExecutor(1) as pool:
        iteration = pool.submit(logits, held)

        def on_started() -> None:
            assert has_run.wait(10)
            assert not iteration.done()

        held.load(on_started)
        while_arriving = iteration.result()
    assert torch.equal(while_arriving, logits(held))


def test_an_iteration_that_waits_for_a_layer_which_fails_gets_an_error(bench: Bench):
    name = "model.layers.1.mlp.up_proj.weight"
    bench.save(TINY, {name: torch.zeros(80, 48, dtype=torch.int8)})
    held = bench.hold()
    held.begin_load()
    with ThreadPoolExecutor(1) as pool:
        iteration = pool.submit(logits, held)
        with pytest.raises(CheckpointError, match=r"torch\.int8"):
            held.load(nothing)
        with pytest.raises(SourceError, match="device"):
            iteration.result()
    assert held.state is WeightState.COLD
    with pytest.raises(SourceError, match="not on the device"):
        logits(held)


def test_a_fetch_that_fails_leaves_what_is_resident_as_it_is(bench: Bench):
    bench.save(TINY)
    held = bench.hold()
    load(held)
    bench.images.write_text("not a folder")
    with pytest.raises(SourceError, match="File exists"):
        held.fetch()
    assert held.state is WeightState.RESIDENT
    assert torch.equal(logits(held), bench.expected())
    bench.images.unlink()
    assert held.fetch() == held.host_bytes


def test_a_truncated_image_fails_to_load_and_can_be_fetched_again(bench: Bench):
    bench.save(TINY)
    held, started = bench.hold(), []
    held.fetch()
    (image,) = bench.images.iterdir()
    with image.open("r+b") as file:
        file.truncate(held.host_bytes - 1)
    held.begin_load()
    with pytest.raises(SourceError, match="bytes instead of"):
        held.load(lambda: started.append(True))
    assert (held.state, started) == (WeightState.HOST, [])
    held.drop()
    assert held.fetch() == held.host_bytes
    load(held)
    assert torch.equal(logits(held), bench.expected())


def test_a_checkpoint_written_anew_is_not_taken_for_the_old_one(bench: Bench):
    bench.save(TINY)
    held = bench.hold()
    held.fetch()
    (bench.folder / "model/model.safetensors").unlink()
    bench.save(TINY | {"rms_norm_eps": 1e-3})
    anew = bench.hold()
    assert anew.fetch() == anew.host_bytes
    assert len(list(bench.images.iterdir())) == 2
    held.drop()
    with pytest.raises(CheckpointError, match="has changed"):
        held.fetch()


def test_memory_goes_back_to_the_system_when_weights_leave(bench: Bench):
    bench.save(TINY | {"hidden_size": 768, "intermediate_size": 2048, "torch_dtype": "bfloat16"})
    held = bench.hold()
    held.fetch()
    load(held)
    logits(held)
    held.evict()
    before = resident_bytes()
    for _ in range(3):
        load(held)
        arrived = resident_bytes()
        held.evict()
        assert arrived - before > 0.9 * held.weight_bytes
        assert resident_bytes() - before < 0.1 * held.weight_bytes


def test_closing_ends_a_load_and_the_iteration_that_waits_for_it(bench: Bench):
    bench.save(TINY | FOUR_LAYERS)
    held, has_begun = bench.hold(), threading.Event()
    held.fetch()

    def on_started() -> None:
        has_begun.set()
        held.cancel()

    with ThreadPoolExecutor(2) as pool:
        held.begin_load()
        copy, iteration = pool.submit(held.load, on_started), pool.submit(logits, held)
        assert has_begun.wait(10)
        held.close()
        with pytest.raises(SourceError, match="given up"):
            copy.result()
        with pytest.raises(SourceError, match="device"):
            iteration.result()
    assert held.state is WeightState.COLD
