"""Packed weights in one run of bytes are those that are read from the checkpoint, bit by bit."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fabric.core.errors import CheckpointError, SourceError
from fabric.core.plan import ParallelConfig
from fabric.core.weights import Quantization
from fabric.models.config import ModelConfig
from fabric.models.llama import LlamaForCausalLM
from fabric.models.loader import OpenedModel, RankPlace, load_model, open_model
from fabric.models.parameters import CheckpointWeights, quantized
from fabric.models.progress import NoProgress
from fabric.models.shard import shard_of
from fabric.models.sources import LocalModel
from fabric.models.weight_layout import (
    ALIGNMENT,
    BufferWeights,
    WeightLayout,
    lay_out,
    stored_bytes,
)
from fabric.parallel.local import local_groups
from kernels.dispatch import available_backends, select_backend
from kernels.ops import Backend
from tests.unit.tiny_models import (
    TINY,
    TINY_QWEN2,
    DictCheckpoint,
    OneSequence,
    random_tensors,
    save_folder,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")

MODELS: dict[str, dict[str, object]] = {
    "Llama": TINY,
    "tied": TINY | {"tie_word_embeddings": True},
    "odd": TINY | {"vocab_size": 97, "intermediate_size": 81},
    "Qwen2": TINY_QWEN2,
}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=available_backends("cpu"))
def backend(request: pytest.FixtureRequest) -> Backend:
    return select_backend("cpu", request.param, num_threads=1)


def written(layout: WeightLayout, source: CheckpointWeights) -> BufferWeights:
    # torch aligns its memory to 64 bytes.
    buffer = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    for index, group in enumerate(layout.groups):
        for offset, values in stored_bytes(group, source.group(index)):
            buffer[offset : offset + len(values)] = values
    return BufferWeights(layout, buffer)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("raw", MODELS.values(), ids=MODELS.keys())
def test_integer_weights_are_views_too_and_take_less(
    backend: Backend, raw: dict[str, object], dtype: torch.dtype, quantization: Quantization
):
    config = ModelConfig.from_hf(raw)
    dense = LlamaForCausalLM.parameter_groups(config, shard_of(config, ParallelConfig(), 0, 0))
    groups = quantized(dense, quantization)
    source = CheckpointWeights(DictCheckpoint(random_tensors(config)), groups, backend, dtype)
    layout = lay_out(groups, backend, dtype)
    buffer = written(layout, source)
    for index, group in enumerate(groups):
        for parameter in group:
            if not parameter.is_linear:
                found = buffer.group(index).tensor(parameter.name)
                assert torch.equal(found, source.group(index).tensor(parameter.name))
                continue
            ours, theirs = (each.group(index).linear(parameter.name) for each in (buffer, source))
            assert torch.equal(ours.data, theirs.data)
            assert replace(ours, data=theirs.data) == theirs
            is_head = parameter.name == "head"
            assert ours.format == ("int8" if is_head else quantization)
    if backend.packing != "plain":
        assert repr(layout) != repr(lay_out(dense, backend, dtype))
        assert layout.num_bytes < lay_out(dense, backend, torch.float32).num_bytes


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_integers_come_from_what_is_stored_whatever_the_models_dtype(
    backend: Backend, quantization: Quantization
):
    config = ModelConfig.from_hf(TINY)
    dense = LlamaForCausalLM.parameter_groups(config, shard_of(config, ParallelConfig(), 0, 0))
    groups, tensors = quantized(dense, quantization), random_tensors(config)
    packed = [
        CheckpointWeights(DictCheckpoint(tensors), groups, backend, dtype).group(1).linear("down")
        for dtype in DTYPES
    ]
    assert [each.dtype for each in packed] == DTYPES
    assert torch.equal(packed[0].data, packed[1].data)


def open_folder(folder: Path, backend: Backend, place: RankPlace | None = None) -> OpenedModel:
    return open_model(LocalModel(folder, "hf", ""), backend, "auto", None, place)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 9), (16, 48), (33, 47), (130, 64)])
def test_a_packed_weight_has_the_shape_that_was_announced(
    backend: Backend, rows: int, columns: int, dtype: torch.dtype
):
    packed = backend.pack_linear(torch.ones(rows, columns, dtype=dtype))
    assert tuple(packed.data.shape) == backend.packed_shape(rows, columns, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("raw", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize(("pipeline", "tensor"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_every_ranks_bytes_are_what_it_reads_from_the_checkpoint(
    backend: Backend, raw: dict[str, object], pipeline: int, tensor: int, dtype: torch.dtype
):
    config = ModelConfig.from_hf(raw)
    checkpoint = DictCheckpoint(random_tensors(config))
    for stage in range(pipeline):
        for rank in range(tensor):
            shard = shard_of(config, ParallelConfig(pipeline, tensor), stage, rank)
            groups = LlamaForCausalLM.parameter_groups(config, shard)
            source = CheckpointWeights(checkpoint, groups, backend, dtype)
            buffer = written(lay_out(groups, backend, dtype), source)
            for index, group in enumerate(groups):
                for parameter in group:
                    expected, found = source.group(index), buffer.group(index)
                    if not parameter.is_linear:
                        name = parameter.name
                        assert torch.equal(found.tensor(name), expected.tensor(name))
                        continue
                    ours, theirs = (g.linear(parameter.name) for g in (found, expected))
                    assert torch.equal(ours.data, theirs.data)
                    assert (ours.out_features, ours.in_features, ours.dtype) == (
                        theirs.out_features,
                        theirs.in_features,
                        theirs.dtype,
                    )


@pytest.mark.parametrize("raw", MODELS.values(), ids=MODELS.keys())
def test_groups_follow_each_other_and_tensors_start_at_64_bytes(
    backend: Backend, raw: dict[str, object]
):
    config = ModelConfig.from_hf(raw)
    shard = shard_of(config, ParallelConfig(), 0, 0)
    layout = lay_out(LlamaForCausalLM.parameter_groups(config, shard), backend, torch.bfloat16)
    end = 0
    for group in layout.groups:
        assert group.start == end
        assert [placed.offset % ALIGNMENT for placed in group.tensors] == [0] * len(group.tensors)
        end = group.end
    assert layout.num_bytes == end
    assert len(layout.groups) == 1 + config.num_layers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("raw", MODELS.values(), ids=MODELS.keys())
def test_logits_over_views_are_those_of_the_checkpoint(
    backend: Backend, raw: dict[str, object], dtype: torch.dtype
):
    config = ModelConfig.from_hf(raw)
    checkpoint = DictCheckpoint(random_tensors(config))
    loaded = LlamaForCausalLM(config, backend, dtype)
    loaded.load_weights(checkpoint, NoProgress())
    groups = LlamaForCausalLM.parameter_groups(config, loaded.shard)
    source = CheckpointWeights(checkpoint, groups, backend, dtype)
    viewing = LlamaForCausalLM(config, backend, dtype)
    viewing.attach(written(lay_out(groups, backend, dtype), source))
    expected = OneSequence(loaded, dtype).logits([1, 2, 3])
    assert torch.equal(OneSequence(viewing, dtype).logits([1, 2, 3]), expected)


def test_a_tied_head_takes_no_room_where_packing_changes_nothing(backend: Backend):
    config = ModelConfig.from_hf(MODELS["tied"])
    shard = shard_of(config, ParallelConfig(), 0, 0)
    groups = LlamaForCausalLM.parameter_groups(config, shard)
    layout = lay_out(groups, backend, torch.float32)
    source = CheckpointWeights(
        DictCheckpoint(random_tensors(config)), groups, backend, torch.float32
    )
    for ends in (written(layout, source).group(0), source.group(0)):
        addresses = [ends.tensor("embedding").data_ptr(), ends.linear("head").data.data_ptr()]
        assert len(set(addresses)) == (1 if backend.packing == "plain" else 2)


def test_a_tied_tensor_is_read_once():
    config = ModelConfig.from_hf(MODELS["tied"])
    names: list[str] = []

    class Recording(DictCheckpoint):
        def read(self, name: str, *ranges: slice) -> Tensor:
            names.append(name)
            return super().read(name, *ranges)

    model = LlamaForCausalLM(config, select_backend("cpu", num_threads=1), torch.float32)
    model.load_weights(Recording(random_tensors(config)), NoProgress())
    assert len(names) == len(set(names))


def test_a_model_without_weights_refuses_to_run():
    config = ModelConfig.from_hf(TINY)
    model = LlamaForCausalLM(config, select_backend("cpu", num_threads=1), torch.float32)
    for _ in range(2):
        with pytest.raises(SourceError, match="not on the device"):
            OneSequence(model, torch.float32).logits([1])
        model.load_weights(DictCheckpoint(random_tensors(config)), NoProgress())
        OneSequence(model, torch.float32).logits([1])
        model.detach()


@pytest.mark.parametrize(("stage", "rank"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_an_opened_model_tells_what_a_loaded_one_does(
    tmp_path: Path, backend: Backend, stage: int, rank: int
):
    tensors = random_tensors(ModelConfig.from_hf(TINY))
    folder = save_folder(tmp_path / "model", TINY, tensors)
    place = RankPlace(ParallelConfig(2, 2), stage, local_groups(2)[rank])
    opened = open_folder(folder, backend, place)
    loaded = load_model(LocalModel(folder, "hf", ""), backend, "auto", None, NoProgress(), place)
    assert opened.card("tiny") == loaded.card("tiny")
    assert (opened.defaults, opened.layout) == (loaded.defaults, loaded.layout)
    assert opened.num_parameters == sum(tensor.numel() for tensor in tensors.values())


def test_files_that_have_changed_since_they_were_opened_are_refused(
    tmp_path: Path, backend: Backend
):
    folder = save_folder(tmp_path / "model", TINY, random_tensors(ModelConfig.from_hf(TINY)))
    opened = open_folder(folder, backend)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.raises(CheckpointError, match="has changed"), opened.reading(backend):
        pass
