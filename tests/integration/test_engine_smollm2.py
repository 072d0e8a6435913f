"""SmolLM2-135M through the whole engine: the tokens of transformers, however it is scheduled."""

import json
from pathlib import Path

import pytest
import torch

from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.offline import Generated, generate
from fabric.engine.settings import EngineSettings, ModelSettings, ParkingSettings, WorkerSettings
from fabric.models.loader import load_model
from fabric.models.progress import NoProgress
from fabric.models.sources import LocalModel, default_cache_dir
from fabric.scheduler.settings import SchedulerConfig
from kernels.reference import ReferenceBackend
from tests.integration.test_engine_swapping import swap_at_every_step
from tests.perf.transformers_twin import twin_of

pytestmark = [pytest.mark.weights, pytest.mark.timeout(600)]

NUM_PROMPTS = 20
NUM_TOKENS = 64


def build(
    local: LocalModel,
    chunk: int,
    block_size: int,
    prefix_cache: bool,
    parking: ParkingSettings = ParkingSettings(),  # noqa: B008
) -> BuiltEngine:
    model = ModelSettings(
        model="smollm2", source=str(local.path), dtype="float32", max_model_len=1024
    )
    worker = WorkerSettings(
        models=(model,),
        cache_dir=default_cache_dir(),
        kv_cache_bytes=512 * 2**20,
        block_size=block_size,
        parking=parking,
    )
    scheduler = SchedulerConfig(max_num_seqs=min(16, chunk), max_num_batched_tokens=chunk)
    return build_engine(
        EngineSettings(worker=worker, scheduler=scheduler, prefix_cache=prefix_cache)
    )


def requests(prompts: list[list[int]], num_tokens: int = NUM_TOKENS) -> list[GenerationRequest]:
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    return [
        GenerationRequest(f"r{i}", "smollm2", tuple(prompt), sampling)
        for i, prompt in enumerate(prompts)
    ]


def tokens(results: dict[str, Generated]) -> list[list[int]]:
    return [results[f"r{i}"].sequences[0].token_ids for i in range(len(results))]


@pytest.fixture(scope="module")
def engine(smollm2_local: LocalModel) -> BuiltEngine:
    return build(smollm2_local, chunk=512, block_size=16, prefix_cache=False)


@pytest.fixture(scope="module")
def prompts(engine: BuiltEngine, data_path: Path) -> list[list[int]]:
    """The first chat turns of MT-bench, as the chat template renders them."""
    lines = (data_path / "prompts/mt_bench_questions.jsonl").read_text().splitlines()
    turns = [json.loads(line)["turns"][0] for line in lines[:: len(lines) // NUM_PROMPTS]]
    chats = [[{"role": "user", "content": turn}] for turn in turns[:NUM_PROMPTS]]
    return [list(engine.tokenizer.apply_chat_template(chat)) for chat in chats]


@pytest.fixture(scope="module")
def alone(engine: BuiltEngine, prompts: list[list[int]]) -> list[list[int]]:
    """Each prompt's tokens when it runs alone."""
    return [tokens(generate(engine.engine, requests([prompt])))[0] for prompt in prompts]


def test_greedy_tokens_equal_those_of_transformers(
    smollm2_local: LocalModel, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    config = load_model(smollm2_local, ReferenceBackend(), "float32", None, NoProgress()).config
    model = twin_of(smollm2_local, config, torch.float32)
    torch.set_num_threads(2)
    try:
        for prompt, ours in zip(prompts, alone, strict=True):
            output = model.generate(
                torch.tensor([prompt]),
                do_sample=False,
                eos_token_id=None,
                max_new_tokens=NUM_TOKENS,
            )
            assert output[0, len(prompt) :].tolist() == ours
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("chunk", "block_size", "prefix_cache"), [(16, 32, True), (64, 8, False), (512, 16, True)]
)
def test_batched_output_equals_that_of_each_request_alone(
    smollm2_local: LocalModel,
    prompts: list[list[int]],
    alone: list[list[int]],
    chunk: int,
    block_size: int,
    prefix_cache: bool,
) -> None:
    built = build(smollm2_local, chunk, block_size, prefix_cache)
    assert tokens(generate(built.engine, requests(prompts))) == alone
    if prefix_cache:
        assert tokens(generate(built.engine, requests(prompts))) == alone


def generate_preempted(built: BuiltEngine, pending: list[GenerationRequest]) -> list[list[int]]:
    """Preempt every running request after every step."""
    results = {request.request_id: Generated() for request in pending}
    for request in pending:
        built.engine.add(request)
    while built.engine.has_work:
        for output in built.engine.step():
            results[output.request_id].append(output)
        for request in pending:
            built.scheduler.preempt(request.request_id)
    return tokens(results)


def test_preempting_everything_at_every_step_changes_no_token(
    smollm2_local: LocalModel, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    built = build(smollm2_local, chunk=512, block_size=16, prefix_cache=True)
    assert generate_preempted(built, requests(prompts)) == alone


def test_recomputing_whole_prompts_at_every_step_changes_no_token(
    engine: BuiltEngine, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    num_tokens = 8
    preempted = generate_preempted(engine, requests(prompts[:4], num_tokens))
    assert preempted == [ours[:num_tokens] for ours in alone[:4]]


@pytest.mark.parametrize("tier", ["host_bytes", "disk_bytes"])
def test_swapping_everything_at_every_step_changes_no_token(
    smollm2_local: LocalModel, prompts: list[list[int]], alone: list[list[int]], tier: str
) -> None:
    parking = ParkingSettings(debug=True, **{tier: 512 * 2**20})  # type: ignore[arg-type]
    built = build(smollm2_local, 512, 16, prefix_cache=False, parking=parking)
    num_prompts, num_tokens = 6, 8
    results = swap_at_every_step(built, requests(prompts[:num_prompts], num_tokens))
    assert tokens(results) == [ours[:num_tokens] for ours in alone[:num_prompts]]
    report = built.scheduler.report()
    assert (report.num_recomputed_tokens, report.num_failed_transfers) == (0, 0)
    assert report.num_preemptions >= num_prompts * (num_tokens - 2)
    built.engine.close()
