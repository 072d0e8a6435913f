"""What an engine has of its own for a GPU, all together, over memory of the host.

Only ``torch.cuda`` is a fake: its streams do at once what they are given.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fabric.engine.step_inputs as step_inputs
from fabric.engine.build import build_engine
from fabric.engine.cuda_copies import CudaBlocks
from fabric.engine.device_weights import CudaWeights, DeviceWeights
from fabric.engine.forward_pass import KVMemory
from fabric.engine.held_weights import HeldWeights
from fabric.engine.offline import generate
from fabric.engine.pinned import PinnedRing
from fabric.engine.settings import ParkingSettings
from fabric.engine.step_inputs import CudaInputs
from fabric.engine.worker_model import WorkerModel
from tests.integration.test_engine_exactness import STORIES_PROMPTS, requests, settings, tokens
from tests.integration.test_engine_swapping import swap_at_every_step
from tests.unit.fake_cuda import FakeCuda
from tests.unit.test_engine_decode_graphs import FakeRecorder

CPU = torch.device("cpu")
NUM_PROMPTS = 6


def host_bytes(num_bytes: int) -> Tensor:
    return torch.zeros(num_bytes, dtype=torch.uint8)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Workers for a GPU from now on."""
    cuda = FakeCuda()

    def reserve(weights: HeldWeights) -> DeviceWeights:
        return CudaWeights(weights.weight_bytes, CPU, cuda, host_bytes)

    def device_blocks(model: WorkerModel, kv: KVMemory) -> CudaBlocks:
        return CudaBlocks(kv.kv_cache, cuda, kv.addresses)

    def ring(num_pieces: int, piece_bytes: int, cuda: FakeCuda) -> PinnedRing:
        return PinnedRing(num_pieces, piece_bytes, cuda, host_bytes)

    monkeypatch.setattr(HeldWeights, "_reserve", reserve)
    monkeypatch.setattr(WorkerModel, "_device_blocks", device_blocks)
    monkeypatch.setattr(WorkerModel, "_inputs", lambda model: CudaInputs(CPU, cuda))
    monkeypatch.setattr(WorkerModel, "_recorder", lambda *_: FakeRecorder())
    monkeypatch.setattr(step_inputs, "PinnedRing", ring)
    return cuda


@pytest.mark.parametrize("is_async", [False, True])
def test_tokens_are_those_of_an_engine_for_the_host(
    stories_path: Path, request: pytest.FixtureRequest, is_async: bool
) -> None:
    def generated() -> dict[str, list[int]]:
        built = build_engine(settings(stories_path, async_scheduling=is_async))
        results = generate(built.engine, requests(built, STORIES_PROMPTS))
        built.engine.close()
        return tokens(results)

    expected = generated()
    request.getfixturevalue("cuda")
    assert generated() == expected


def test_blocks_that_are_swapped_come_back_as_they_were(
    stories_path: Path, request: pytest.FixtureRequest
) -> None:
    plain = build_engine(settings(stories_path, prefix_cache=False))
    wanted = requests(plain, STORIES_PROMPTS[:NUM_PROMPTS])
    expected = tokens(generate(plain.engine, wanted))
    plain.engine.close()
    cuda: FakeCuda = request.getfixturevalue("cuda")
    parking = ParkingSettings(host_bytes=64 * 2**20, debug=True)
    built = build_engine(settings(stories_path, parking=parking, preemption="swap"))
    assert tokens(swap_at_every_step(built, wanted)) == expected
    report = built.scheduler.report()
    built.engine.close()
    assert (report.num_failed_transfers, report.num_recomputed_tokens) == (0, 0)
    assert report.swapped_in_bytes > 0
    assert "into moves" in cuda.log
