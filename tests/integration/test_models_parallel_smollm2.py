"""SmolLM2 (nine heads, three KV heads, a tied head) cut over ranks as threads and over stages."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fabric.models.config import ModelConfig
from fabric.models.gguf import GgufCheckpoint
from fabric.models.loader import load_model
from fabric.models.progress import NoProgress
from fabric.models.sources import LocalModel
from fabric.models.tokenizer import Tokenizer
from kernels.dispatch import select_backend
from tests.unit.thread_ranks import Cut
from tests.unit.tiny_models import OneSequence

pytestmark = [pytest.mark.weights, pytest.mark.usefixtures("one_torch_thread")]

TEXT = "The capital of France is Paris. The capital of Italy is"
NUM_TOKENS = 64
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def prompt(smollm2_local: LocalModel) -> list[int]:
    return Tokenizer.load(smollm2_local.path).encode(TEXT)


@pytest.fixture(scope="module")
def config(smollm2_local: LocalModel) -> ModelConfig:
    checkpoint = GgufCheckpoint(smollm2_local.path)
    is_tied = "lm_head.weight" not in checkpoint.names()
    return ModelConfig.from_gguf(checkpoint.metadata, is_tied, checkpoint.rope_factors)


@pytest.fixture(scope="module")
def whole(smollm2_local: LocalModel, prompt: list[int]) -> tuple[Tensor, list[int]]:
    backend = select_backend("cpu", num_threads=1)
    model = load_model(smollm2_local, backend, "float32", 128, NoProgress()).model
    logits = OneSequence(model, torch.float32).logits(prompt)
    return logits, OneSequence(model, torch.float32).greedy(prompt, NUM_TOKENS)


@pytest.mark.parametrize("cut", [Cut(3), Cut(1, 2), Cut(3, 2, layer_split=(17, 13))], ids=str)
def test_a_cut_model_has_the_logits_and_tokens_of_the_whole(
    smollm2_local: LocalModel,
    config: ModelConfig,
    prompt: list[int],
    whole: tuple[Tensor, list[int]],
    cut: Cut,
):
    checkpoint = GgufCheckpoint(Path(smollm2_local.path))
    logits, tokens = cut.run(config, checkpoint, prompt, NUM_TOKENS)
    assert (logits - whole[0]).abs().max() < TOLERANCE
    assert tokens == whole[1]
