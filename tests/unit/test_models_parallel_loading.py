"""A rank reads its own part of a checkpoint, and no more of it than it must."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import quants
from torch import Tensor

from fabric.core.errors import CheckpointError, ConfigError
from fabric.core.plan import ParallelConfig
from fabric.models.checkpoint import ALL, Checkpoint, SafetensorsCheckpoint
from fabric.models.config import ModelConfig
from fabric.models.gguf import GgufCheckpoint
from fabric.models.llama_weights import weights_of
from fabric.models.loader import RankPlace, load_model
from fabric.models.progress import NoProgress
from fabric.models.shard import shard_of
from fabric.models.sources import LocalModel
from fabric.models.weights import Weight
from fabric.parallel.group import SoloGroup
from fabric.parallel.local import local_groups
from kernels.reference import ReferenceBackend
from tests.unit.test_models_gguf import write_model
from tests.unit.tiny_models import TINY, TINY_QWEN2, DictCheckpoint, random_tensors, save_folder

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CONFIG = ModelConfig.from_hf(TINY)


class CountingCheckpoint(DictCheckpoint):
    """Counts the elements that are read."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self.num_read = 0

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        part = super().read(name, rows, columns)
        self.num_read += part.numel()
        return part


def weights(config: ModelConfig, parallel: ParallelConfig, stage: int, rank: int) -> list[Weight]:
    top, layers = weights_of(config, shard_of(config, parallel, stage, rank))
    return [*top.values(), *(weight for layer in layers for weight in layer.values())]


def read_all(checkpoint: Checkpoint, tensor: int, rank: int) -> list[Tensor]:
    parts = weights(CONFIG, ParallelConfig(1, tensor), 0, rank)
    return [weight.read(checkpoint, torch.float32) for weight in parts]


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(("pipeline", "tensor"), [(1, 2), (2, 1), (2, 2)])
def test_ranks_together_read_each_element_once_but_for_norms(
    pipeline: int, tensor: int, is_tied: bool
):
    config = ModelConfig.from_hf(TINY | {"tie_word_embeddings": is_tied})
    tensors = random_tensors(config)
    checkpoint = CountingCheckpoint(tensors)
    for stage in range(pipeline):
        for rank in range(tensor):
            for weight in weights(config, ParallelConfig(pipeline, tensor), stage, rank):
                weight.read(checkpoint, torch.float32)
    norms = sum(part.numel() for part in tensors.values() if part.dim() == 1)
    # A tied embedding is on the first stage, and once more on the last.
    again = 96 * 48 if is_tied and pipeline > 1 else 0
    total = sum(part.numel() for part in tensors.values())
    assert checkpoint.num_read == total + (tensor - 1) * norms + again


@pytest.mark.parametrize("tensor", [2, 3, 6])
@pytest.mark.parametrize("family", [TINY, TINY_QWEN2], ids=["Llama", "Qwen2"])
def test_safetensors_and_gguf_ranges_are_those_of_the_whole_tensors(
    tmp_path: Path, family: dict[str, object], tensor: int
):
    raw = family | {"num_key_value_heads": 6}
    config = ModelConfig.from_hf(raw)
    tensors = random_tensors(config)
    folder = save_folder(tmp_path / "folder", raw, tensors)
    write_model(tmp_path / "model.gguf", raw, tensors)
    expected = DictCheckpoint(tensors)
    stored = (SafetensorsCheckpoint(folder), GgufCheckpoint(tmp_path / "model.gguf"))
    for rank in range(tensor):
        for weight in weights(config, ParallelConfig(1, tensor), 0, rank):
            whole = weight.read(expected, torch.float32)
            for checkpoint in stored:
                assert torch.equal(weight.read(checkpoint, torch.float32), whole)


def test_gguf_decodes_only_the_rows_of_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tensors = random_tensors(CONFIG)
    write_model(tmp_path / "model.gguf", TINY, tensors)
    checkpoint = GgufCheckpoint(tmp_path / "model.gguf")
    decoded = []
    dequantize = quants.dequantize

    def counting(data: np.ndarray, kind: object) -> np.ndarray:
        decoded.append(data.nbytes)
        return dequantize(data, kind)

    monkeypatch.setattr(quants, "dequantize", counting)
    read_all(checkpoint, tensor=2, rank=1)
    by_rows = by_columns = norms = 0
    for name, part in tensors.items():
        if part.dim() == 1:
            norms += part.nbytes
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            by_columns += part.nbytes
        else:
            by_rows += part.nbytes
    assert sum(decoded) == by_rows // 2 + by_columns + norms


def test_a_rank_counts_the_whole_models_parameters(tmp_path: Path):
    tensors = random_tensors(CONFIG)
    local = LocalModel(save_folder(tmp_path / "model", TINY, tensors), "hf", "")
    place = RankPlace(ParallelConfig(2, 2), 1, local_groups(2)[1])
    loaded = load_model(local, ReferenceBackend(), "auto", None, NoProgress(), place)
    assert loaded.num_parameters == sum(part.numel() for part in tensors.values())
    assert loaded.model.kv_cache_shape(7, 16) == (7, 1, 2, 1, 16, 8)


def test_a_rank_refuses_a_checkpoint_that_lacks_what_another_one_needs(tmp_path: Path):
    tensors = random_tensors(CONFIG)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    local = LocalModel(save_folder(tmp_path / "model", TINY, tensors), "hf", "")
    place = RankPlace(ParallelConfig(2, 1), 1, SoloGroup())
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.0\.mlp\.up_proj\.weight"):
        load_model(local, ReferenceBackend(), "auto", None, NoProgress(), place)


def test_a_model_that_cannot_be_cut_is_refused_before_anything_is_read(tmp_path: Path):
    local = LocalModel(save_folder(tmp_path / "model", TINY, random_tensors(CONFIG)), "hf", "")
    place = RankPlace(ParallelConfig(1, 4), 0, local_groups(4)[0])
    with pytest.raises(ConfigError, match="6 heads and 2 KV heads allow 1, 2, 6"):
        load_model(local, ReferenceBackend(), "auto", None, NoProgress(), place)
