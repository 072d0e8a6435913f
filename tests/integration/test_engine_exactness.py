"""Greedy output of a request is the same alone, batched, chunked, cached, forked and preempted."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.offline import Generated, generate
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.models.sources import default_cache_dir
from fabric.models.tokenizer import Tokenizer
from fabric.scheduler.settings import SchedulerConfig

NUM_TOKENS = 64
STORIES_PROMPTS = (
    "Once upon a time",
    "Once upon a time, there was a little girl named Lily. She loved to play outside",
    "The big red ball",
    "Tom and Sue went to the park. They saw a dog. The dog was very",
    "One day, a cat",
    "A",
    "She was sad because",
    "In the forest there was a tree with many birds. The birds sang every day and",
    "Mom said",
    "The sun was hot. Ben wanted to swim in the lake",
    "Lily and her mom",
    "It was a rainy day and",
    "The little bird could not fly. It",
    "Sam had a big blue car. He liked to",
    "One night, the moon",
    "They played with the ball until",
    "The cat sat on the mat and looked at the fish in the",
    "Dad gave Anna a new book. Anna",
    "There was a brave knight who",
    "At the zoo, the kids saw a lion, a bear and",
)


def settings(stories: Path, **changes: object) -> EngineSettings:
    model = ModelSettings(
        model="stories",
        source=str(stories),
        dtype="float32",
        quantization=changes.pop("quantization", "none"),  # type: ignore[arg-type]
    )
    worker = {
        "models": (model,),
        "cache_dir": default_cache_dir(),
        "kv_cache_bytes": 4 * 2**20,
        "num_threads": 1,
    }
    scheduler: dict[str, object] = {"max_num_seqs": 16}
    for name, value in changes.items():
        (worker if name in WorkerSettings.__dataclass_fields__ else scheduler)[name] = value
    prefix_cache = bool(scheduler.pop("prefix_cache", True))
    return EngineSettings(
        worker=WorkerSettings(**worker),  # type: ignore[arg-type]
        scheduler=SchedulerConfig(**scheduler),  # type: ignore[arg-type]
        prefix_cache=prefix_cache,
    )


def requests(built: BuiltEngine, prompts: tuple[str, ...]) -> list[GenerationRequest]:
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    return [
        GenerationRequest(
            f"r{i}", built.served.card.model, tuple(built.tokenizer.encode(prompt)), sampling
        )
        for i, prompt in enumerate(prompts)
    ]


def tokens(results: dict[str, Generated]) -> dict[str, list[int]]:
    return {name: result.sequences[0].token_ids for name, result in results.items()}


@pytest.fixture(scope="module")
def alone(stories_path: Path) -> dict[str, list[int]]:
    """Each prompt's tokens when it runs alone, with no cache, in one chunk."""
    return each_alone(settings(stories_path, prefix_cache=False))


def each_alone(engine_settings: EngineSettings) -> dict[str, list[int]]:
    built = build_engine(engine_settings)
    results: dict[str, Generated] = {}
    for request in requests(built, STORIES_PROMPTS):
        results.update(generate(built.engine, [request]))
    return tokens(results)


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantization(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def alone_quantized(stories_path: Path, quantization: str) -> dict[str, list[int]]:
    """The same of the model with integer weights."""
    return each_alone(settings(stories_path, prefix_cache=False, quantization=quantization))


def test_greedy_tokens_equal_those_of_transformers(
    stories_path: Path, alone: dict[str, list[int]]
) -> None:
    model = LlamaForCausalLM.from_pretrained(stories_path).eval()
    tokenizer = Tokenizer.load(stories_path)
    for i, prompt in enumerate(STORIES_PROMPTS):
        ids = torch.tensor([tokenizer.encode(prompt)])
        output = model.generate(ids, do_sample=False, eos_token_id=None, max_new_tokens=NUM_TOKENS)
        assert output[0, ids.shape[1] :].tolist() == alone[f"r{i}"]


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("chunk", [16, 64, 512])
def test_batched_output_equals_that_of_each_request_alone(
    stories_path: Path, alone: dict[str, list[int]], chunk: int, block_size: int, prefix_cache: bool
) -> None:
    built = build_engine(
        settings(
            stories_path,
            max_num_batched_tokens=chunk,
            block_size=block_size,
            prefix_cache=prefix_cache,
        )
    )
    assert tokens(generate(built.engine, requests(built, STORIES_PROMPTS))) == alone
    assert built.scheduler.report().num_free_blocks == built.scheduler.report().num_blocks


@pytest.mark.parametrize(("chunk", "block_size"), [(16, 8), (64, 32), (512, 16)])
def test_batched_output_of_integer_weights_equals_that_of_each_request_alone(
    stories_path: Path,
    quantization: str,
    alone_quantized: dict[str, list[int]],
    chunk: int,
    block_size: int,
) -> None:
    built = build_engine(
        settings(
            stories_path,
            max_num_batched_tokens=chunk,
            block_size=block_size,
            quantization=quantization,
            num_threads=2,
        )
    )
    assert tokens(generate(built.engine, requests(built, STORIES_PROMPTS))) == alone_quantized


def test_integer_weights_tell_other_stories_than_floats_but_begin_like_them(
    alone: dict[str, list[int]], alone_quantized: dict[str, list[int]]
) -> None:
    assert alone_quantized != alone
    same = [alone_quantized[name][:4] == alone[name][:4] for name in alone]
    assert sum(same) > len(same) // 2


def test_a_second_run_from_the_prefix_cache_gives_the_same_tokens(
    stories_path: Path, alone: dict[str, list[int]]
) -> None:
    built = build_engine(settings(stories_path, block_size=8))
    generate(built.engine, requests(built, STORIES_PROMPTS))
    again = generate(built.engine, requests(built, STORIES_PROMPTS))
    assert tokens(again) == alone
    assert sum(r.usage.cached_tokens for r in again.values() if r.usage) > 0


def test_preempting_everything_at_every_step_changes_no_token(
    stories_path: Path, alone: dict[str, list[int]]
) -> None:
    check_preempting(build_engine(settings(stories_path)), alone)


def test_preempting_integer_weights_sequences_changes_no_token(
    stories_path: Path, quantization: str, alone_quantized: dict[str, list[int]]
) -> None:
    built = build_engine(settings(stories_path, quantization=quantization))
    check_preempting(built, alone_quantized)


def check_preempting(built: BuiltEngine, alone: dict[str, list[int]]) -> None:
    pending = requests(built, STORIES_PROMPTS)
    results = {request.request_id: Generated() for request in pending}
    for request in pending:
        built.engine.add(request)
    while built.engine.has_work:
        for output in built.engine.step():
            results[output.request_id].append(output)
        for request in pending:
            built.scheduler.preempt(request.request_id)
    assert tokens(results) == alone
    assert built.scheduler.report().num_preemptions > NUM_TOKENS


def test_a_pool_too_small_for_all_preempts_and_changes_no_token(
    stories_path: Path, alone: dict[str, list[int]]
) -> None:
    built = build_engine(settings(stories_path, kv_cache_bytes=400_000))
    assert tokens(generate(built.engine, requests(built, STORIES_PROMPTS))) == alone
    assert built.scheduler.report().num_preemptions > 0


def test_sampled_tokens_depend_on_the_seed_alone(stories_path: Path) -> None:
    built = build_engine(settings(stories_path))
    drawn = [
        dataclasses.replace(
            request,
            sampling=SamplingParams(
                max_tokens=24, temperature=0.9, top_p=0.9, top_k=50, seed=i, n=1 + i % 3
            ),
        )
        for i, request in enumerate(requests(built, STORIES_PROMPTS))
    ]
    together = generate(built.engine, drawn)
    for request in drawn:
        single = generate(built.engine, [request])[request.request_id]
        assert single.sequences == together[request.request_id].sequences


def test_sequences_of_one_request_differ_but_share_its_prompt_blocks(stories_path: Path) -> None:
    built = build_engine(settings(stories_path))
    request = dataclasses.replace(
        requests(built, STORIES_PROMPTS[:1])[0],
        sampling=SamplingParams(max_tokens=20, temperature=1.0, n=4, seed=7),
    )
    result = generate(built.engine, [request])["r0"]
    assert len({tuple(s.token_ids) for s in result.sequences.values()}) == 4
    assert result.usage is not None
    assert result.usage.completion_tokens == sum(
        len(s.token_ids) for s in result.sequences.values()
    )


def test_greedy_text_is_the_documented_story(stories_path: Path) -> None:
    built = build_engine(settings(stories_path))
    result = generate(built.engine, requests(built, STORIES_PROMPTS[:1]))["r0"]
    story = (
        ", there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
    assert result.sequences[0].text.startswith(story)
