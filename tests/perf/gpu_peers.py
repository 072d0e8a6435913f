"""Transformers on the same shape, with random weights of its own: batches and one stream."""

import gc
import random
import time

import torch
from gpu_bench import Bench, Found
from gpu_engine import SEED, batch_workload

from fabric.engine.engine_timer import Workload

COMPILE_S = 60.0
SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
SMOKE_SHAPE = SHAPE | {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def measure_transformers(bench: Bench, found: Found) -> None:
    """Continuous batching on the engine's workload, and its fallbacks; each may fail alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SMOKE_SHAPE if bench.is_smoke else SHAPE
    torch.set_default_dtype(torch.bfloat16)
    try:
        with bench.device:
            config = LlamaConfig(**shape, attn_implementation="sdpa", tie_word_embeddings=False)
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    workload, rates = batch_workload(bench), []
    try:
        for name, run in (("padded generate", _padded), ("continuous batching", _continuous)):
            try:
                total_s = run(bench, model, workload)
            except Exception as error:
                found[f"{name} failed"] = f"{type(error).__name__}: {error}"[:500]
                continue
            generated = len(workload.prompt_lens) * workload.num_tokens
            found[f"{name} generated_per_s"] = generated / total_s
            rates.append(generated / total_s)
            _compare(bench, found, rates)
        found["one stream tokens_per_s"] = _one_stream(bench, model)
        # Where there is a GPU, generate compiles a model whose cache has one size.
        if bench.end_s - time.monotonic() > COMPILE_S:
            rate = _one_stream(bench, model, cache_implementation="static")
            found["one stream compiled tokens_per_s"] = rate
    finally:
        del model
        gc.collect()
        if bench.is_cuda:
            torch.cuda.empty_cache()


def _compare(bench: Bench, found: Found, rates: list[float]) -> None:
    """The bar is against the fastest way that transformers has."""
    ours = bench.figures.get("batch", {}).get("generated_per_s")
    if ours is not None:
        bench.meet("batch_over_transformers", float(ours) / max(rates))


def _prompts(workload: Workload, vocab_size: int) -> list[list[int]]:
    rng = random.Random(SEED)
    return [[rng.randrange(10, vocab_size) for _ in range(n)] for n in workload.prompt_lens]


def _continuous(bench: Bench, model, workload: Workload) -> float:
    """Its second run, since the first records and compiles."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(
        max_new_tokens=workload.num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    # By default it takes what memory there is.
    small = ContinuousBatchingConfig(block_size=32, num_blocks=16, max_batch_tokens=64)
    times = []
    for _ in range(2):
        prompts = _prompts(workload, model.config.vocab_size)
        start_s = time.perf_counter()
        results = model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=small if bench.is_smoke else None,
            progress_bar=False,
        )
        times.append(time.perf_counter() - start_s)
        lengths = {len(result.generated_tokens) for result in results.values()}
        if len(results) != len(prompts) or lengths != {workload.num_tokens}:
            raise RuntimeError(f"{len(results)} of {len(prompts)} answers of {lengths} tokens")
    return min(times)


def _padded(bench: Bench, model, workload: Workload) -> float:
    prompts = _prompts(workload, model.config.vocab_size)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=bench.device)
    mask = torch.tensor(
        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=bench.device
    )
    times = []
    for _ in range(2):
        start_s = time.perf_counter()
        _generate(model, ids, mask, workload.num_tokens)
        bench.synchronize()
        times.append(time.perf_counter() - start_s)
    return min(times)


def _one_stream(bench: Bench, model, **options: object) -> float:
    """Decoded tokens a second at a context of 128, of the last of a few runs."""
    ids = torch.randint(10, 500, (1, bench.size(128, 8)), device=bench.device)
    num_tokens = bench.size(33, 3)
    times = {}
    for count in (1, num_tokens, 1, num_tokens):
        start_s = time.perf_counter()
        _generate(model, ids, torch.ones_like(ids), count, **options)
        bench.synchronize()
        times[count] = time.perf_counter() - start_s
    return (num_tokens - 1) / (times[num_tokens] - times[1])


def _generate(
    model, ids: torch.Tensor, mask: torch.Tensor, num_tokens: int, **options: object
) -> None:
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            pad_token_id=0,
            **options,
        )
