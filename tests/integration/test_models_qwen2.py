"""Qwen2.5-Coder-0.5B: biases, two KV heads, a head of its own, and a vocabulary of 151,936."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Tokenizer

from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.offline import generate
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.models.config import ModelConfig
from fabric.models.gguf import GgufCheckpoint
from fabric.models.gguf_header import read_gguf_header
from fabric.models.loader import LoadedModel, load_model
from fabric.models.progress import NoProgress
from fabric.models.sources import LocalModel, default_cache_dir
from fabric.models.tokenizer import Tokenizer
from fabric.scheduler.settings import SchedulerConfig
from kernels.dispatch import select_backend
from tests.perf.transformers_twin import twin_of
from tests.unit.thread_ranks import Cut
from tests.unit.tiny_models import OneSequence

pytestmark = [pytest.mark.weights, pytest.mark.timeout(600)]

NUM_PROMPTS = 4
NUM_TOKENS = 16
TOLERANCE = 1e-4
TEXTS = [
    "The quick brown fox jumps over the lazy dog, then counts to 1234567890.",
    "def reverse_string(text):\n    return text[::-1]\n\n\n\tIT'S  done   ",
    "Grüße aus Köln! 你好 😀 cafe\u0301 <tool_call><|fim_prefix|><|im_end|>[PAD151700]",
]
# As Qwen's own tokenizer has them.
SYSTEM_PROMPT = [
    *(151644, 8948, 198, 2610, 525, 1207, 16948, 11, 3465, 553, 54364, 14817, 13, 1446, 525, 264),
    *(10950, 17847, 13, 151645, 198),
]


@pytest.fixture(scope="module")
def tokenizer(qwen2_local: LocalModel) -> Tokenizer:
    return Tokenizer.load(qwen2_local.path)


@pytest.fixture(scope="module")
def loaded(qwen2_local: LocalModel) -> LoadedModel:
    return load_model(qwen2_local, select_backend("cpu"), "float32", 512, NoProgress())


@pytest.fixture(scope="module")
def theirs(qwen2_local: LocalModel, loaded: LoadedModel) -> PreTrainedModel:
    return twin_of(qwen2_local, loaded.config, torch.float32)


@pytest.fixture(scope="module")
def turns(data_path: Path) -> list[str]:
    """All turns of MT-bench."""
    file = data_path / "prompts/mt_bench_questions.jsonl"
    if not file.is_file():
        pytest.skip(f"no {file}")
    lines = file.read_text(encoding="utf-8").splitlines()
    return [turn for line in lines for turn in json.loads(line)["turns"]]


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer, turns: list[str]) -> list[list[int]]:
    chosen = turns[:: len(turns) // NUM_PROMPTS][:NUM_PROMPTS]
    return [tokenizer.apply_chat_template([{"role": "user", "content": turn}]) for turn in chosen]


@pytest.fixture(scope="module")
def expected(theirs: PreTrainedModel, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers says to each prompt."""
    outputs = [
        theirs.generate(
            torch.tensor([prompt]), do_sample=False, eos_token_id=None, max_new_tokens=NUM_TOKENS
        )
        for prompt in prompts
    ]
    return [
        output[0, len(prompt) :].tolist() for prompt, output in zip(prompts, outputs, strict=True)
    ]


def build(local: LocalModel) -> BuiltEngine:
    model = ModelSettings(
        model="qwen2", source=str(local.path), dtype="float32", max_model_len=1024
    )
    worker = WorkerSettings(
        models=(model,),
        cache_dir=default_cache_dir(),
        kv_cache_bytes=256 * 2**20,
        block_size=16,
    )
    scheduler = SchedulerConfig(max_num_seqs=NUM_PROMPTS, max_num_batched_tokens=64)
    return build_engine(EngineSettings(worker=worker, scheduler=scheduler, prefix_cache=True))


def test_token_ids_equal_those_of_transformers(
    qwen2_local: LocalModel, tokenizer: Tokenizer, turns: list[str]
):
    metadata = read_gguf_header(qwen2_local.path).metadata
    tokens, kinds = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    reference = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],  # type: ignore[attr-defined]
    )
    reference.add_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind in (3, 4)])
    for text in TEXTS + turns:
        assert tokenizer.encode(text) == reference.encode(text), text


def test_texts_survive_the_tokenizer(tokenizer: Tokenizer, turns: list[str]):
    for turn in turns:
        assert tokenizer.decode(tokenizer.encode(turn)) == turn


def test_a_chat_begins_with_the_known_system_prompt(tokenizer: Tokenizer):
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert ids == [*SYSTEM_PROMPT, 151644, 872, 198, 9707, 151645, 198, 151644, 77091, 198]
    assert tokenizer.bos_token_id == 151643
    assert tokenizer.encode("Hello") == [9707]


def test_it_is_what_its_card_says(loaded: LoadedModel, tokenizer: Tokenizer):
    card = loaded.card("qwen2")
    assert (card.num_parameters, card.vocab_size) == (630_167_424, 151_936)
    assert (tokenizer.vocab_size, loaded.config.max_position_embeddings) == (151_936, 32_768)
    assert loaded.defaults.eos_token_ids == tokenizer.eos_token_ids == (151_645, 151_643)


def test_it_answers_a_question_and_stops(loaded: LoadedModel, tokenizer: Tokenizer):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question)
    output = OneSequence(loaded.model, loaded.dtype).greedy(prompt, 8)
    text = tokenizer.decode(output, skip_special_tokens=False)
    assert text == "The capital of France is Paris.<|im_end|>"


@pytest.mark.parametrize("text", TEXTS)
def test_logits_equal_those_of_transformers(
    loaded: LoadedModel, tokenizer: Tokenizer, theirs: PreTrainedModel, text: str
):
    ids = tokenizer.encode(text)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    logits = OneSequence(loaded.model, loaded.dtype).logits(ids)
    assert (logits - expected).abs().max() < TOLERANCE


def test_the_engine_says_what_transformers_says(
    qwen2_local: LocalModel, prompts: list[list[int]], expected: list[list[int]]
):
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    requests = [
        GenerationRequest(f"r{i}", "qwen2", tuple(prompt), sampling)
        for i, prompt in enumerate(prompts)
    ]
    results = generate(build(qwen2_local).engine, requests)
    assert [results[f"r{i}"].sequences[0].token_ids for i in range(NUM_PROMPTS)] == expected


@pytest.fixture(scope="module")
def whole(loaded: LoadedModel, prompts: list[list[int]]) -> tuple[Tensor, list[int]]:
    logits = OneSequence(loaded.model, torch.float32).logits(prompts[0])
    return logits, OneSequence(loaded.model, torch.float32).greedy(prompts[0], NUM_TOKENS)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("cut", [Cut(2), Cut(1, 2)], ids=str)
def test_a_cut_model_has_the_logits_and_tokens_of_the_whole(
    qwen2_local: LocalModel, prompts: list[list[int]], whole: tuple[Tensor, list[int]], cut: Cut
):
    checkpoint = GgufCheckpoint(qwen2_local.path)
    config = ModelConfig.from_gguf(checkpoint.metadata, is_tied=False)
    logits, tokens = cut.run(config, checkpoint, prompts[0], NUM_TOKENS)
    assert (logits - whole[0]).abs().max() < TOLERANCE
    assert tokens == whole[1]
