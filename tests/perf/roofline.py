"""What the machine and a model's sizes allow: measured ceilings, and the limits of each job."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

SOURCE = Path(__file__).with_name("roofline.cpp")
COMPILER = ("g++", "-O3", "-march=native", "-std=c++17", "-pthread")
READ_MEBIBYTES = 1024
BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Ceilings:
    """What probes have seen: memory read, and multiply-add from registers."""

    read_bytes_per_s: float
    float32_flop_per_s: float
    bfloat16_flop_per_s: float
    read_pattern: str = ""
    bfloat16_unit: str = ""

    def flop_per_s(self, dtype: str) -> float:
        return self.bfloat16_flop_per_s if dtype == "bfloat16" else self.float32_flop_per_s

    @classmethod
    def typical(cls, seen: Sequence["Ceilings"]) -> "Ceilings":
        """Medians: a shared machine's memory is twice as fast at one time as at another."""
        middle = sorted(seen, key=lambda one: one.read_bytes_per_s)[len(seen) // 2]
        return replace(
            middle,
            float32_flop_per_s=median(one.float32_flop_per_s for one in seen),
            bfloat16_flop_per_s=median(one.bfloat16_flop_per_s for one in seen),
        )


class Probe:
    """The compiled probe of ceilings; raises CalledProcessError if there is no compiler."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "roofline"
        self.library = folder / "libroofline.so"
        _compile(self._program)
        _compile(self.library, "-shared", "-fPIC")

    def measure(self, num_threads: int) -> Ceilings:
        command = [str(self._program), str(num_threads), str(READ_MEBIBYTES)]
        return Ceilings(**json.loads(subprocess.check_output(command, text=True)))


def _compile(target: Path, *flags: str) -> None:
    subprocess.run([*COMPILER, *flags, "-o", str(target), str(SOURCE)], check=True)


@dataclass(frozen=True)
class ModelCost:
    """What a model's tokens cost: ``read_bytes`` of weights a step, KV bytes and operations.

    ``layer_flop`` are those of a token in all layers' linear operations, ``head_flop`` those of
    its logits, and ``attention_flop`` those with each token of its context.
    """

    read_bytes: float
    kv_token_bytes: int
    layer_flop: float
    head_flop: float
    attention_flop: float

    def prompt_flop(self, length: int) -> float:
        """A prompt: every token attends to those before it, and the last one has logits."""
        attention = self.attention_flop * length * (length + 1) / 2
        return self.layer_flop * length + attention + self.head_flop

    def step_bytes(self, contexts: Sequence[float]) -> float:
        """What a step that decodes one token at each of these contexts reads."""
        return self.read_bytes + self.kv_token_bytes * sum(contexts)

    def step_flop(self, contexts: Sequence[float]) -> float:
        """What such a step computes."""
        each = self.layer_flop + self.head_flop
        return len(contexts) * each + self.attention_flop * sum(contexts)


@dataclass(frozen=True)
class Limits:
    """The tokens per second that ceilings allow a model."""

    ceilings: Ceilings
    cost: ModelCost
    dtype: str

    def at_read_rate(self, bytes_per_s: float) -> "Limits":
        """The same where memory is read at another rate."""
        return replace(self, ceilings=replace(self.ceilings, read_bytes_per_s=bytes_per_s))

    def decode(self, context: int, num_tokens: int) -> float:
        """One stream after a prompt: every weight and the context's KV are read for each token."""
        mean = context + num_tokens / 2
        return self.ceilings.read_bytes_per_s / self.cost.step_bytes([mean])

    def prefill(self, length: int) -> float:
        """Prompt tokens: operations bound them."""
        return length * self.ceilings.flop_per_s(self.dtype) / self.cost.prompt_flop(length)

    def batch(self, lengths: Sequence[int], num_tokens: int) -> float:
        """Generated tokens of requests that begin together: their prompts, then steps of all.

        A step takes what its reading or its operations take, whichever is longer.
        """
        flop_per_s = self.ceilings.flop_per_s(self.dtype)
        total_s = sum(self.cost.prompt_flop(length) for length in lengths) / flop_per_s
        for step in range(1, num_tokens):
            contexts = [length + step for length in lengths]
            read_s = self.cost.step_bytes(contexts) / self.ceilings.read_bytes_per_s
            total_s += max(read_s, self.cost.step_flop(contexts) / flop_per_s)
        return len(lengths) * num_tokens / total_s
