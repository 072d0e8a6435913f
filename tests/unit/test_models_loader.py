import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE

from fabric.core.errors import CheckpointError, ConfigError
from fabric.models.checkpoint import INDEX_FILE
from fabric.models.config import ModelConfig
from fabric.models.loader import LoadedModel, load_model
from fabric.models.progress import NoProgress
from fabric.models.sources import LocalModel
from kernels.reference import ReferenceBackend
from tests.unit.tiny_models import TINY, OneSequence, random_tensors, save_folder

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NORM = "model.norm.weight"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return random_tensors(ModelConfig.from_hf(TINY))


def load(folder: Path, dtype: str = "auto", max_model_len: int | None = None) -> LoadedModel:
    local = LocalModel(folder, "hf", str(folder))
    return load_model(local, ReferenceBackend(), dtype, max_model_len, NoProgress())


def logits(loaded: LoadedModel) -> torch.Tensor:
    return OneSequence(loaded.model, loaded.dtype).logits([1, 2, 3])


def test_sharded_and_single_files_give_the_same_model(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
):
    single = save_folder(tmp_path / "single", TINY, tensors)
    sharded = save_folder(tmp_path / "sharded", TINY, tensors)
    (sharded / "model.safetensors").unlink()
    weight_map = {name: f"part{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, sharded / file)
    (sharded / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(logits(load(single)), logits(load(sharded)))


def test_missing_unused_and_misshaped_tensors_are_named_together(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
):
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)
    tensors[NORM] = torch.zeros(47)
    with pytest.raises(CheckpointError) as caught:
        load(save_folder(tmp_path / "model", TINY, tensors))
    message = caught.value.message
    assert "missing: model.layers.1.self_attn.k_proj.weight" in message
    assert "unused: model.layers.0.self_attn.q_proj.bias" in message
    assert f"wrong shape: {NORM} [47] instead of [48]" in message


def test_a_long_list_of_names_is_cut(tmp_path: Path, tensors: dict[str, torch.Tensor]):
    with pytest.raises(CheckpointError, match="and 10 more"):
        load(save_folder(tmp_path / "model", TINY, {NORM: tensors[NORM]}))


def test_stored_rope_frequencies_and_a_spare_tied_head_are_ignored(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
):
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    load(save_folder(tmp_path / "model", TINY | {"tie_word_embeddings": True}, tensors))


def test_integer_weights_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]):
    tensors[NORM] = torch.zeros(48, dtype=torch.int8)
    with pytest.raises(CheckpointError, match=f"{NORM} is torch.int8"):
        load(save_folder(tmp_path / "model", TINY, tensors))


def test_another_architecture_is_refused_with_those_supported(tmp_path: Path):
    save_folder(tmp_path / "model", {"architectures": ["GPT2LMHeadModel"]}, {})
    with pytest.raises(
        CheckpointError, match=r"GPT2LMHeadModel.*supported: LlamaForCausalLM, Qwen2ForCausalLM"
    ):
        load(tmp_path / "model")


@pytest.mark.parametrize("config", ["{", "[]"])
def test_a_malformed_config_is_named(tmp_path: Path, config: str):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ("float32", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("float16", "auto", torch.bfloat16),
        ("bfloat16", "float32", torch.float32),
        ("float32", "bfloat16", torch.bfloat16),
    ],
)
def test_dtype_is_the_stored_one_unless_asked_otherwise(
    tmp_path: Path,
    tensors: dict[str, torch.Tensor],
    stored: str,
    asked: str,
    expected: torch.dtype,
):
    stored_tensors = {name: t.to(getattr(torch, stored)) for name, t in tensors.items()}
    folder = save_folder(tmp_path / "model", TINY | {"torch_dtype": stored}, stored_tensors)
    assert load(folder, asked).dtype is expected


def test_context_length_is_bounded_by_the_models(tmp_path: Path, tensors: dict[str, torch.Tensor]):
    folder = save_folder(tmp_path / "model", TINY, tensors)
    assert load(folder, max_model_len=64).max_model_len == 64
    with pytest.raises(ConfigError, match="129"):
        load(folder, max_model_len=129)


def test_the_tokenizers_end_token_ends_sequences_too(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
):
    folder = save_folder(tmp_path / "model", TINY | {"eos_token_id": 7}, tensors)
    vocabulary = Tokenizer(BPE({"a": 0, "<end>": 1}, []))
    vocabulary.decoder = ByteLevel()
    vocabulary.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    assert load(folder).defaults.eos_token_ids == (7, 1)


def test_the_card_tells_what_a_router_needs(tmp_path: Path, tensors: dict[str, torch.Tensor]):
    folder = save_folder(tmp_path / "model", TINY, tensors)
    (folder / "generation_config.json").write_text('{"temperature": 0.3, "eos_token_id": 9}')
    loaded = load(folder)
    card = loaded.card("tiny")
    assert (card.model, card.vocab_size, card.dtype) == ("tiny", 96, "float32")
    assert card.tokenizer_path == str(folder)
    assert card.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert (loaded.defaults.temperature, loaded.defaults.eos_token_ids) == (0.3, (9,))
