"""A real model of 135 million parameters, out of a quantized GGUF file inside a wheel."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM as TransformersLlama

from fabric.models.loader import LoadedModel, load_model
from fabric.models.progress import NoProgress
from fabric.models.sources import LocalModel
from fabric.models.tokenizer import Tokenizer
from kernels.dispatch import select_backend
from kernels.reference import ReferenceBackend
from tests.perf.transformers_twin import twin_of
from tests.unit.tiny_models import OneSequence

PROMPT = [6403, 1980, 253, 655]
GOLDEN = [
    *(28, 260, 2240, 282, 23324, 27108, 436, 253, 15114, 39228, 28, 351, 25854, 41658, 284),
    *(14055, 9018, 30, 1249, 347, 260, 929, 3514, 411, 28, 260, 2240, 2585, 288, 5946),
]
TOLERANCE = 1e-4
TEXTS = [
    "The quick brown fox jumps over the lazy dog, then counts to 1234567890.",
    "def reverse_string(text):\n    return text[::-1]\n",
    "Grüße aus Köln! 你好 😀",
]


@pytest.fixture(scope="module")
def loaded(smollm2_local: LocalModel) -> LoadedModel:
    backend = select_backend("cpu", num_threads=1)
    return load_model(smollm2_local, backend, "float32", None, NoProgress())


@pytest.fixture(scope="module")
def by_the_book(smollm2_local: LocalModel) -> LoadedModel:
    return load_model(smollm2_local, ReferenceBackend(), "float32", None, NoProgress())


@pytest.fixture(scope="module")
def tokenizer(smollm2_local: LocalModel) -> Tokenizer:
    return Tokenizer.load(smollm2_local.path)


@pytest.fixture(scope="module")
def theirs(smollm2_local: LocalModel, loaded: LoadedModel) -> TransformersLlama:
    return twin_of(smollm2_local, loaded.config, torch.float32)


def test_it_is_what_its_card_says(loaded: LoadedModel, tokenizer: Tokenizer):
    card = loaded.card("smollm2")
    assert (card.num_parameters, card.vocab_size, card.max_model_len) == (134_515_008, 49152, 8192)
    assert (tokenizer.vocab_size, loaded.defaults.eos_token_ids) == (49152, (2,))


def test_greedy_tokens_are_the_known_ones(loaded: LoadedModel, tokenizer: Tokenizer):
    assert tokenizer.encode("Once upon a time") == PROMPT
    assert OneSequence(loaded.model, loaded.dtype).greedy(PROMPT, len(GOLDEN)) == GOLDEN


def test_it_answers_a_question_and_stops(loaded: LoadedModel, tokenizer: Tokenizer):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question)
    output = OneSequence(loaded.model, loaded.dtype).greedy(prompt, 8)
    text = tokenizer.decode(output, skip_special_tokens=False)
    assert text == "The capital of France is Paris.<|im_end|>"


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("text", TEXTS)
def test_logits_equal_those_of_transformers(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, theirs: TransformersLlama, text: str
):
    ids = tokenizer.encode(text)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    for name in ("by_the_book", "loaded"):
        loaded: LoadedModel = request.getfixturevalue(name)
        logits = OneSequence(loaded.model, loaded.dtype).logits(ids)
        assert (logits - expected).abs().max() < TOLERANCE, name


def test_real_prompts_survive_the_tokenizer(data_path: Path, tokenizer: Tokenizer):
    file = data_path / "prompts/mt_bench_questions.jsonl"
    if not file.is_file():
        pytest.skip(f"no {file}")
    for line in file.read_text(encoding="utf-8").splitlines():
        for turn in json.loads(line)["turns"]:
            assert tokenizer.decode(tokenizer.encode(turn)) == turn
