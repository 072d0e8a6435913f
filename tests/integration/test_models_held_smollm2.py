"""SmolLM2 computes the same bits from its checkpoint, from host memory and once it came back."""

from pathlib import Path

import pytest
import torch

from fabric.engine.held_weights import HeldWeights
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.models.loader import RankPlace, load_model
from fabric.models.progress import NoProgress
from fabric.models.sources import LocalModel
from fabric.models.tokenizer import Tokenizer
from kernels.dispatch import select_backend
from tests.unit.tiny_models import OneSequence

pytestmark = [pytest.mark.weights, pytest.mark.usefixtures("one_torch_thread")]


def test_logits_are_those_of_the_checkpoint_after_every_move(
    smollm2_local: LocalModel, tmp_path: Path
):
    backend = select_backend("cpu", num_threads=1)
    prompt = Tokenizer.load(smollm2_local.path).encode("The capital of France is")
    loaded = load_model(smollm2_local, backend, "auto", 128, NoProgress())
    expected = OneSequence(loaded.model, loaded.dtype).logits(prompt)
    settings = ModelSettings(model="SmolLM2", source=str(smollm2_local.path), max_model_len=128)
    worker = WorkerSettings(models=(settings,), cache_dir=tmp_path, host_weight_dir=tmp_path / "h")
    held = HeldWeights(settings, worker, backend, RankPlace.alone(), NoProgress())
    held.begin_load()
    for _ in range(2):
        held.load(lambda: None)
        assert torch.equal(OneSequence(held.model, held.dtype).logits(prompt), expected)
        held.evict()
        held.fetch()
        held.begin_load()
    held.close()
