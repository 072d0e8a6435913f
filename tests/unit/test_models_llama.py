from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers import LlamaForCausalLM as TransformersLlama

from fabric.models.config import ModelConfig
from fabric.models.llama import LlamaForCausalLM
from fabric.models.loader import load_model
from fabric.models.progress import NoProgress
from fabric.models.rope import cos_sin_table
from fabric.models.rope_config import RopeConfig, RopeScaling
from fabric.models.sources import LocalModel
from fabric.models.tokenizer import Tokenizer
from kernels.dispatch import available_backends, select_backend
from kernels.ops import Backend
from tests.unit.test_models_config import LLAMA3
from tests.unit.tiny_models import TINY, DictCheckpoint, OneSequence, random_tensors

pytestmark = pytest.mark.usefixtures("one_torch_thread")

STORY = (
    ", there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)
SHAPES = {
    "grouped queries": {},
    "one KV head": {"num_key_value_heads": 1},
    "no grouping": {"num_key_value_heads": 6},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 32},
    "other theta": {"rope_theta": 500000.0, "rms_norm_eps": 1e-6},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3": {"rope_scaling": LLAMA3},
}


@pytest.fixture(params=available_backends("cpu"))
def backend(request: pytest.FixtureRequest) -> Backend:
    return select_backend("cpu", request.param, num_threads=1)


def reference_logits(
    raw: dict[str, object], tensors: dict[str, torch.Tensor], token_ids: list[int]
) -> torch.Tensor:
    """What transformers makes of the same weights."""
    model = TransformersLlama(LlamaConfig(**raw, attn_implementation="eager")).eval()
    absent, unused = model.load_state_dict(tensors, strict=False)
    assert (unused, set(absent) <= {"lm_head.weight"}) == ([], True)
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0]


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES.keys())
def test_logits_equal_those_of_transformers(backend: Backend, change: dict[str, object]):
    raw = TINY | change
    config = ModelConfig.from_hf(raw)
    tensors = random_tensors(config)
    model = LlamaForCausalLM(config, backend, torch.float32)
    model.load_weights(DictCheckpoint(tensors), NoProgress())
    token_ids = torch.arange(100).remainder(96).tolist()
    sequence = OneSequence(model, torch.float32)
    logits = torch.cat([sequence.logits(token_ids[:61]), sequence.logits(token_ids[61:])])
    expected = reference_logits(raw, tensors, token_ids)
    assert logits.dtype is torch.float32
    assert (logits - expected).abs().max() < 1e-4


def test_only_the_rows_asked_for_come_back(backend: Backend):
    config = ModelConfig.from_hf(TINY)
    model = LlamaForCausalLM(config, backend, torch.float32)
    model.load_weights(DictCheckpoint(random_tensors(config)), NoProgress())
    every = OneSequence(model, torch.float32).logits([5, 6, 7])
    some = OneSequence(model, torch.float32, rows=[2, 0]).logits([5, 6, 7])
    assert torch.equal(some, every[[2, 0]])


def test_a_batch_that_asks_for_no_logits_gets_none(backend: Backend):
    config = ModelConfig.from_hf(TINY)
    model = LlamaForCausalLM(config, backend, torch.float32)
    model.load_weights(DictCheckpoint(random_tensors(config)), NoProgress())
    assert OneSequence(model, torch.float32, rows=[]).logits([5, 6, 7]).shape == (0, 96)


def test_the_kv_cache_has_the_kernels_shape():
    model = LlamaForCausalLM(ModelConfig.from_hf(TINY), select_backend("cpu"), torch.float32)
    assert model.kv_cache_shape(7, 16) == (7, 2, 2, 2, 16, 8)


def test_rope_factors_of_gguf_files_equal_llama3_scaling():
    llama3 = RopeConfig(5e5, RopeScaling.LLAMA3, factor=8.0, original_max_position_embeddings=64)
    plain = cos_sin_table(RopeConfig(5e5), 16, 2)
    scaled = cos_sin_table(llama3, 16, 2)
    factors = plain[1, 8:].asin() / scaled[1, 8:].asin()
    spelled_out = RopeConfig(5e5, RopeScaling.FACTORS, frequency_factors=tuple(factors.tolist()))
    torch.testing.assert_close(cos_sin_table(spelled_out, 16, 100), cos_sin_table(llama3, 16, 100))


def test_stories260k_tells_the_documented_story(stories_path: Path, backend: Backend):
    local = LocalModel(stories_path, "hf", "stories")
    loaded = load_model(local, backend, "auto", None, NoProgress())
    assert (loaded.dtype, loaded.max_model_len) == (torch.float32, 512)
    assert loaded.num_parameters == 260_032
    assert loaded.defaults.eos_token_ids == (2,)
    tokenizer = Tokenizer.load(loaded.tokenizer_path)
    prompt = tokenizer.encode("Once upon a time")
    output = OneSequence(loaded.model, loaded.dtype).greedy(prompt, 64)
    told = tokenizer.decode(prompt + output)
    assert told.startswith("Once upon a time" + STORY)


def test_stories260k_has_the_logits_of_transformers(stories_path: Path, backend: Backend):
    model = TransformersLlama.from_pretrained(stories_path, attn_implementation="eager").eval()
    token_ids = Tokenizer.load(stories_path).encode("Once upon a time" + STORY)
    with torch.no_grad():
        expected = model(torch.tensor([token_ids])).logits[0]
    local = LocalModel(stories_path, "hf", "stories")
    loaded = load_model(local, backend, "float32", None, NoProgress())
    logits = OneSequence(loaded.model, loaded.dtype).logits(token_ids)
    assert (logits - expected).abs().max() < 1e-4
