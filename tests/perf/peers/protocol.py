"""How a subject's process is told what to generate: lines of JSON on its standard input.

Its first argument is a :class:`Task` as JSON. It answers with a line of facts once its first token
is there, and with a line of times for each command. This module needs nothing but Python, because
every engine runs in a virtual environment of its own.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

WARM_UP_PROMPT = tuple(range(300, 316))


@dataclass(frozen=True)
class Task:
    """What to load, and how much there will be to do at most.

    ``checkpoint`` is a file or folder in the engine's own format; ``kv_cache_bytes`` is what the
    largest batch needs, to be rounded up to what the engine can be told, and
    ``max_num_batched_tokens`` those of one iteration; 0: as many as the engine chooses. ``program``
    is the engine's, ``reader`` the library of :class:`PairedReads`.
    """

    checkpoint: str
    dtype: str
    quantization: str
    num_threads: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_bytes: int
    program: str = ""
    reader: str = ""


@dataclass(frozen=True)
class Times:
    """Seconds from a command until its first token, and until its last; extra sums if known."""

    first_s: float
    total_s: float
    extra: Mapping[str, float] | None = None


class Engine(Protocol):
    """What generates greedily, to a given length whatever it samples."""

    facts: dict[str, object]

    def stream(self, prompt: Sequence[int], num_tokens: int) -> Times:
        """Generate for one prompt."""
        ...

    def batch(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Generate for all prompts, there at once; return the seconds until all have ended."""
        ...


class PairedEngine(Engine, Protocol):
    """One that can read memory between its steps."""

    def paired_stream(self, prompt: Sequence[int], num_tokens: int, pattern: str) -> Times:
        """Generate for one prompt, memory being read in a pattern after each step.

        The times are without the reads; ``read_bytes_per_s`` is their rate.
        """
        ...


def serve(open_engine: Callable[[Task], Engine]) -> None:
    """Answer commands until standard input ends."""
    # Libraries print to standard output what is no answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = open_engine(Task(**json.loads(sys.argv[1])))
    engine.stream(WARM_UP_PROMPT, 1)
    print(json.dumps(engine.facts), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        prompts, num_tokens = command["prompts"], command["num_tokens"]
        if pattern := command["read_pattern"]:
            times = cast(PairedEngine, engine).paired_stream(prompts[0], num_tokens, pattern)
        elif len(prompts) == 1:
            times = engine.stream(prompts[0], num_tokens)
        else:
            times = Times(0.0, engine.batch(prompts, num_tokens))
        answer = {"first_s": times.first_s, "total_s": times.total_s} | dict(times.extra or {})
        print(json.dumps(answer), file=answers)
