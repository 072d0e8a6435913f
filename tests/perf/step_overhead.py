"""What the host does in a decode step beside running kernels: microseconds by part, and its share.

Run: python tests/perf/step_overhead.py [--rounds 5] [--steps 12] [--batches 1,8,32] [--json OUT].
The parts of the real engine are timed from outside, while it decodes with sampling parameters of
several kinds: a random model of TinyLlama-1.1B's shape gives the share, stories260K (whose
kernels take next to nothing) the plain microseconds. Its vocabulary of 32,000 entries is learned
from the standard library's sources. Figures are medians over rounds of medians over steps.
"""

import argparse
import json
import random
import statistics
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, verdict
from random_llama import Shape, write_checkpoint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.engine import Engine
from fabric.engine.forward_pass import ForwardPass
from fabric.engine.model_runner import ModelRunner
from fabric.engine.sequence_table import SequenceTable
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.models.sources import default_cache_dir
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig

SEED = 1
PROMPT = 128
# First steps warm caches, and the last ones end sequences.
NUM_WARM = 3
MOST_SHARE = 0.05
VOCAB_BYTES = 6_000_000
STORIES = Path(__file__).resolve().parents[3] / "shared/data/models/stories260K"
BIASES = tuple((token, 1.0) for token in range(100, 120))
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.8, "top_p": 0.95, "top_k": 50},
    "nucleus": {"temperature": 0.8, "top_p": 0.95},
    "penalties": {
        "temperature": 0.8,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "min_p": 0.05,
        "logit_bias": BIASES,
    },
    "logprobs": {"temperature": 0.0, "logprobs": 5},
}
# Each part, and the methods whose time it is.
PARTS: dict[str, list[tuple[type, str]]] = {
    "schedule": [(Scheduler, "schedule"), (Scheduler, "take_orders")],
    "batch": [(ModelRunner, "_apply_changes"), (SequenceTable, "build_batch")],
    "forward": [(ForwardPass, "run")],
    "sampling": [(ModelRunner, "_sample")],
    "update": [(Scheduler, "update_from_output")],
    "text": [(Engine, "_outputs")],
}


@dataclass
class Stopwatch:
    """Seconds of the current step by part, on a clock."""

    clock: Callable[[], float]
    spent_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def install(self) -> None:
        """Time the parts' methods from now on, in all objects."""
        for part, methods in PARTS.items():
            for owner, name in methods:
                setattr(owner, name, self._timed(part, getattr(owner, name)))

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        spent_s, self.spent_s = self.spent_s, defaultdict(float)
        return spent_s

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start_s = self.clock()
            try:
                return method(*args, **kwargs)
            finally:
                self.spent_s[part] += self.clock() - start_s

        return timed


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level vocabulary like a trained model's, in place of the checkpoint's."""
    vocabulary = Tokenizer(models.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    vocabulary.train_from_iterator(_sources(), trainer)
    vocabulary.save(str(folder / "tokenizer.json"))


def _sources() -> Iterator[str]:
    num_bytes = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        num_bytes += len(text)
        yield text
        if num_bytes > VOCAB_BYTES:
            return


def build(source: Path, options: argparse.Namespace) -> BuiltEngine:
    model = ModelSettings(model="model", source=str(source), max_model_len=512)
    worker = WorkerSettings(
        models=(model,), cache_dir=default_cache_dir(), num_threads=options.threads
    )
    scheduler = SchedulerConfig(max_num_seqs=max(options.batches), max_num_batched_tokens=512)
    return build_engine(EngineSettings(worker=worker, scheduler=scheduler))


def requests_of(kind: str, num: int, num_steps: int, vocab_size: int) -> list[GenerationRequest]:
    rng = random.Random(SEED)
    prompts = [tuple(rng.randrange(3, vocab_size) for _ in range(PROMPT)) for _ in range(num)]
    changes = dict(KINDS[kind])
    if vocab_size < 1000:
        changes.pop("logit_bias", None)
    return [
        GenerationRequest(
            f"r{i}",
            "model",
            prompt,
            SamplingParams(max_tokens=num_steps, ignore_eos=True, seed=i, **changes),
        )
        for i, prompt in enumerate(prompts)
    ]


def measure(
    built: BuiltEngine, watch: Stopwatch, requests: list[GenerationRequest], num_steps: int
) -> dict[str, float]:
    """Medians over the decode steps of all requests together, in seconds."""
    engine, steps = built.engine, list[dict[str, float]]()
    for request in requests:
        engine.add(request)
    while engine.has_work:
        watch.take()
        start_s = watch.clock()
        outputs = engine.step()
        step_s = watch.clock() - start_s
        is_whole = sum(len(output.deltas) for output in outputs) == len(requests)
        is_last = any(output.is_last for output in outputs)
        if is_whole and not is_last:
            spent = {part: watch.spent_s[part] for part in PARTS}
            spent["other"] = step_s - sum(spent.values())
            steps.append(spent | {"step": step_s})
    kept = steps[NUM_WARM:]
    assert len(kept) >= num_steps, f"{len(kept)} decode steps were measured"
    return {part: statistics.median(step[part] for step in kept) for part in kept[0]}


def measure_model(source: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians over rounds for each kind and batch; rounds of the kinds alternate."""
    built, watch = build(source, options), options.watch
    vocab_size = built.served.card.vocab_size
    rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(-1, options.rounds):
        for kind in options.kinds:
            for batch in options.batches:
                # While the last prompts are computed, the first sequences go on.
                num_tokens = options.steps + NUM_WARM + 2 + batch * PROMPT // 400
                requests = requests_of(kind, batch, num_tokens, vocab_size)
                figures = measure(built, watch, requests, options.steps)
                if number >= 0:
                    rounds[f"{kind}_{batch}"].append(figures)
    built.engine.close()
    return {
        name: {part: statistics.median(row[part] for row in rows) for part in rows[0]}
        for name, rows in rounds.items()
    }


def show(title: str, figures: dict[str, dict[str, float]]) -> None:
    parts = [*PARTS, "other", "step"]
    print(f"\n{title}, microseconds of a step")
    print(f"{'':16}" + "".join(f"{part:>10}" for part in parts) + f"{'host':>10}{'share':>8}")
    for name, row in figures.items():
        host_s = row["step"] - row["forward"]
        cells = "".join(f"{row[part] * 1e6:10.0f}" for part in parts)
        print(f"{name:16}{cells}{host_s * 1e6:10.0f}{host_s / row['step']:8.3f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="decode steps of a round")
    parser.add_argument(
        "--batches", type=lambda s: [int(n) for n in s.split(",")], default="1,8,32"
    )
    parser.add_argument("--kinds", type=lambda s: s.split(","), default=",".join(KINDS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stories", type=Path, default=STORIES)
    parser.add_argument("--checkpoint", type=Path, help="use or write the large model here")
    parser.add_argument("--only-small", action="store_true")
    parser.add_argument(
        "--thread-time",
        action="store_true",
        help="count the engine's time on a processor: for a look while other programs run",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.watch = Stopwatch(time.thread_time if options.thread_time else time.perf_counter)
    return options


def write_large(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.safetensors").exists():
        shape = Shape()
        write_checkpoint(folder, shape, SEED)
        write_tokenizer(folder, shape.vocab_size)


def main() -> None:
    options = parse()
    options.watch.install()
    torch.set_num_threads(1)
    setting = {
        **describe_machine("torch", "tokenizers", "numpy"),
        **{k: str(v) for k, v in vars(options).items() if k != "watch"},
        "prompt_tokens": PROMPT,
        "seed": SEED,
    }
    for name, value in setting.items():
        print(f"{name:24} {value}")
    results: dict[str, dict[str, dict[str, float]]] = {}
    if options.stories.is_dir():
        results["stories260K"] = measure_model(options.stories, options)
        show("stories260K", results["stories260K"])
    if not options.only_small:
        with tempfile.TemporaryDirectory() as folder:
            large = options.checkpoint or Path(folder)
            write_large(large)
            results["1.1B"] = measure_model(large, options)
        show("1.1B bfloat16", results["1.1B"])
    if options.json:
        result = {"setting": setting, "figures_s": results}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print()
    for name, row in results.get("1.1B", {}).items():
        share = (row["step"] - row["forward"]) / row["step"]
        print(f"BAR overhead_share_{name} {share:.4f} {MOST_SHARE} {verdict(share <= MOST_SHARE)}")


if __name__ == "__main__":
    main()
