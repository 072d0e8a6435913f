import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fabric.core.errors import CheckpointError
from fabric.models.checkpoint import INDEX_FILE, SafetensorsCheckpoint


def write_shards(folder: Path, *shards: dict[str, torch.Tensor]) -> dict[str, str]:
    weight_map = {}
    for index, shard in enumerate(shards):
        file = f"model-{index}.safetensors"
        save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_shards_read_like_a_single_file(tmp_path: Path):
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4).bfloat16()}
    write_shards(tmp_path, {"a": tensors["a"]}, {"b": tensors["b"]})
    checkpoint = SafetensorsCheckpoint(tmp_path)
    assert checkpoint.names() == {"a", "b"}
    assert checkpoint.shape("a") == (2, 3)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.read(name).dtype == tensor.dtype
    checkpoint.close()


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(20, 20)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        SafetensorsCheckpoint(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match="does not exist"):
        SafetensorsCheckpoint(tmp_path)


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path):
    weight_map = write_shards(tmp_path, {"a": torch.zeros(1)})
    (tmp_path / INDEX_FILE).write_text(
        json.dumps({"weight_map": weight_map | {"b": "model-0.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="'b'"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": {"a": "../model.safetensors"}}'])
def test_a_malformed_index_is_refused(tmp_path: Path, index: str):
    (tmp_path / INDEX_FILE).write_text(index)
    with pytest.raises(CheckpointError, match="index"):
        SafetensorsCheckpoint(tmp_path)
