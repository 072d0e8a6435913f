"""The benchmark's jobs: what a round asks of a subject, and the figure that it gives."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from engine_subject import Answer, Subject
from roofline import Limits

FIRST_ID = 300
BATCH, BATCH_TOKENS = 32, 64
BATCH_PROMPTS = (128, 512)
BATCH_SEED = 7
WARM_UP_TOKENS, WARM_UP_BATCH = 4, 8

Prompts = list[list[int]]


@dataclass(frozen=True)
class Job:
    """Prompts of given lengths, all there at once, and so many tokens for each."""

    name: str
    lengths: tuple[int, ...]
    num_tokens: int
    figure: Callable[[Answer], float]
    limit: Callable[[Limits], float]

    @property
    def kind(self) -> str:
        return self.name.partition("_")[0]

    def prompts(self, seed: int, vocab_size: int) -> Prompts:
        """Random token ids, the same for each subject."""
        rng = random.Random(f"{self.name} {seed}")
        return [
            [rng.randrange(FIRST_ID, vocab_size) for _ in range(length)] for length in self.lengths
        ]

    def warm_up(self, subject: Subject, vocab_size: int) -> None:
        """Go through the job's shapes once."""
        prompts = self.prompts(-1, vocab_size)[:WARM_UP_BATCH]
        subject.generate(prompts, min(self.num_tokens, WARM_UP_TOKENS))

    def run(
        self, subject: Subject, seed: int, vocab_size: int, read_pattern: str = ""
    ) -> tuple[float, Answer]:
        """One round's figure, in tokens per second; with reads of memory between our steps."""
        prompts = self.prompts(seed, vocab_size)
        answer = subject.generate(prompts, self.num_tokens, read_pattern)
        return self.figure(answer), answer


def _decode(context: int) -> Job:
    return Job(
        f"decode_{context}",
        (context,),
        BATCH_TOKENS,
        lambda answer: (BATCH_TOKENS - 1) / (answer.total_s - answer.first_s),
        lambda limits: limits.decode(context, BATCH_TOKENS),
    )


def _prefill(length: int) -> Job:
    return Job(
        f"prefill_{length}",
        (length,),
        1,
        lambda answer: length / answer.first_s,
        lambda limits: limits.prefill(length),
    )


def _batch() -> Job:
    rng = random.Random(BATCH_SEED)
    lengths = tuple(rng.randint(*BATCH_PROMPTS) for _ in range(BATCH))
    return Job(
        "batch",
        lengths,
        BATCH_TOKENS,
        lambda answer: BATCH * BATCH_TOKENS / answer.total_s,
        lambda limits: limits.batch(lengths, BATCH_TOKENS),
    )


JOBS = (_decode(128), _decode(1024), _prefill(512), _prefill(2048), _batch())
MAX_KV_TOKENS = max(sum(job.lengths) + len(job.lengths) * job.num_tokens for job in JOBS)
MAX_LENGTH = max(max(job.lengths) + job.num_tokens for job in JOBS)
DECODE = "decode"
STARTUP = "startup"
KINDS = (DECODE, "prefill", "batch", STARTUP)


def chosen_jobs(names: list[str]) -> list[Job]:
    """Jobs by their names or kinds, each once.

    Raises:
        ValueError: A name is neither.
    """
    known = {*KINDS, *(job.name for job in JOBS)}
    if unknown := set(names) - known:
        raise ValueError(f"jobs {sorted(unknown)} are none of {', '.join(sorted(known))}")
    return [job for job in JOBS if {job.name, job.kind} & set(names)]
