"""Models whose weights are drawn as they are loaded."""

import json
from pathlib import Path

import pytest
import torch

from fabric.core.errors import SourceError
from fabric.models.loader import load_model, open_model
from fabric.models.progress import NoProgress
from fabric.models.sources import resolve_source
from fabric.models.tokenizer import Tokenizer
from kernels.reference import ReferenceBackend
from tests.unit.tiny_models import TINY, OneSequence


def test_a_known_shape_loads_and_computes(tmp_path: Path) -> None:
    local = resolve_source("random:tiny", tmp_path, NoProgress())
    loaded = load_model(local, ReferenceBackend(), "auto", None, NoProgress())
    logits = OneSequence(loaded.model, torch.bfloat16).logits([1, 2, 3])
    assert logits.isfinite().all()
    assert loaded.dtype is torch.bfloat16
    assert len({*logits[-1].tolist()}) > 100
    assert Tokenizer.load(loaded.tokenizer_path).vocab_size == loaded.config.vocab_size


def test_the_same_shape_has_the_same_weights_every_time(tmp_path: Path) -> None:
    local = resolve_source("random:tiny", tmp_path, NoProgress())
    first, second = (
        load_model(local, ReferenceBackend(), "float32", None, NoProgress()) for _ in range(2)
    )
    tokens = OneSequence(first.model, torch.float32).greedy([1, 2, 3], 8)
    assert OneSequence(second.model, torch.float32).greedy([1, 2, 3], 8) == tokens


def test_a_folder_with_a_configuration_is_enough(tmp_path: Path) -> None:

    (tmp_path / "config.json").write_text(json.dumps(TINY | {"tie_word_embeddings": True}))
    local = resolve_source(f"random:{tmp_path}", tmp_path, NoProgress())
    opened = open_model(local, ReferenceBackend(), "auto", None)
    assert opened.num_parameters == 40176


def test_an_unknown_shape_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="random:huge: give a folder with"):
        resolve_source("random:huge", tmp_path, NoProgress())
