"""Tokens are the same whether iterations that decode are recorded, and filled up, or not."""

from pathlib import Path

import pytest

from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import build_engine
from fabric.engine.offline import generate
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.engine.worker_model import WorkerModel
from fabric.models.config import ModelConfig
from fabric.scheduler.settings import SchedulerConfig
from tests.unit.test_engine_decode_graphs import FakeRecorder
from tests.unit.tiny_models import TINY, random_tensors, save_folder

NUM_REQUESTS = 11


@pytest.fixture
def folder(tmp_path: Path, stories_path: Path) -> Path:
    tiny = TINY | {"vocab_size": 512}
    folder = save_folder(tmp_path / "tiny", tiny, random_tensors(ModelConfig.from_hf(tiny)))
    (folder / "tokenizer.json").write_bytes((stories_path / "tokenizer.json").read_bytes())
    return folder


def generated(folder: Path, kv_blocks: int, num_together: int = NUM_REQUESTS) -> list[list[int]]:
    """Greedy tokens of prompts of several lengths, so many of them at a time."""
    block_bytes = 2 * 2 * 2 * 4 * 8 * 4
    worker = WorkerSettings(
        models=(ModelSettings(model="tiny", source=str(folder), dtype="float32"),),
        cache_dir=folder,
        kv_cache_bytes=kv_blocks * block_bytes,
        block_size=4,
        num_threads=1,
    )
    scheduler = SchedulerConfig(max_num_seqs=NUM_REQUESTS, max_num_batched_tokens=32)
    built = build_engine(EngineSettings(worker=worker, scheduler=scheduler))
    sampling = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    requests = [
        GenerationRequest(f"r{i}", "tiny", tuple(range(3 + i, 5 + 3 * i)), sampling)
        for i in range(NUM_REQUESTS)
    ]
    results = {}
    for first in range(0, NUM_REQUESTS, num_together):
        results.update(generate(built.engine, requests[first : first + num_together]))
    built.engine.close()
    return [results[request.request_id].sequences[0].token_ids for request in requests]


def test_recorded_iterations_give_the_same_tokens_alone_together_and_preempted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generated(folder, kv_blocks=400)
    recorder = FakeRecorder()
    monkeypatch.setattr(WorkerModel, "_recorder", lambda *_: recorder)
    assert generated(folder, kv_blocks=400) == plain
    assert generated(folder, kv_blocks=400, num_together=1) == plain
    assert generated(folder, kv_blocks=40) == plain
    assert recorder.num_replays > 20
