"""Measures one model: our engine, and each peer in turn beside it, round by round."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engine_bars import Pairing
from engine_jobs import DECODE, Job
from engine_models import Model
from engine_subject import Launch, Subject
from roofline import Ceilings, Limits


@dataclass
class Record:
    """A subject's rounds by figure, with the processors that others used, and its footprint.

    ``paired`` are tokens per second of decodes, and bytes per second that reads of memory between
    their steps have met.
    """

    name: str
    rounds: dict[str, list[float]] = field(default_factory=dict)
    other_cpus: dict[str, list[float]] = field(default_factory=dict)
    paired: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    outside_shares: list[float] = field(default_factory=list)
    startups_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    facts: dict[str, object] = field(default_factory=dict)

    def measure(self, job: Job, subject: Subject, seed: int, vocab_size: int) -> None:
        """Add a round."""
        figure, answer = job.run(subject, seed, vocab_size)
        self.rounds.setdefault(job.name, []).append(figure)
        self.other_cpus.setdefault(job.name, []).append(round(answer.other_cpus, 2))
        if answer.outside_s is not None and job.kind == DECODE:
            self.outside_shares.append(answer.outside_s / (answer.total_s - answer.first_s))

    def measure_paired(
        self, job: Job, subject: Subject, seed: int, vocab_size: int, pattern: str
    ) -> None:
        """Add a decode with reads of memory in a pattern between its steps."""
        figure, answer = job.run(subject, seed, vocab_size, pattern)
        assert answer.read_bytes_per_s is not None
        self.paired.setdefault(job.name, []).append((figure, answer.read_bytes_per_s))

    def shares(self, job: Job, limits: Limits) -> list[float]:
        """What paired decodes reached of what memory allowed just then."""
        return [
            figure / job.limit(limits.at_read_rate(read_bytes_per_s))
            for figure, read_bytes_per_s in self.paired[job.name]
        ]

    def end(self, subject: Subject) -> None:
        """Take in what is known at a subject's end."""
        self.facts = dict(subject.facts)
        self.peak_bytes = max(self.peak_bytes, subject.peak_bytes)


@dataclass(frozen=True)
class Bench:
    """How a model is measured.

    ``logs`` holds what its subjects say; ``probe`` measures what the machine allows just then, and
    ``seen`` keeps it.
    """

    model: Model
    jobs: Sequence[Job]
    num_rounds: int
    logs: Path
    probe: Callable[[], Ceilings]
    seen: list[Ceilings] = field(default_factory=list)

    def startups(self, launch: Launch, num_rounds: int) -> list[float]:
        """Seconds from a process's start to its first token, the first start left out."""
        times_s = []
        for _ in range(num_rounds + 1):
            self.model.warm_page_cache()
            with self._started(launch) as subject:
                times_s.append(subject.startup_s)
        return times_s[1:]

    def alone(self, launch: Launch, ours: Record) -> None:
        """Rounds of our engine with no peer."""
        with self._started(launch) as subject:
            self._rounds([(subject, ours)])
            self._paired_rounds(subject, ours)
            ours.end(subject)

    def beside(self, launch: Launch, ours: Record, peers: Sequence[Launch]) -> list[Record]:
        """Rounds of our engine and a peer, ours first, for each peer; ours in ``ours`` as well."""
        records = []
        with self._started(launch) as subject:
            for peer in peers:
                theirs = Record(peer.name)
                with self._started(peer) as other:
                    theirs.startups_s.append(other.startup_s)
                    self._rounds([(subject, ours), (other, theirs)])
                    theirs.end(other)
                records.append(theirs)
            self._paired_rounds(subject, ours)
            ours.end(subject)
        return records

    def _rounds(self, pairs: Sequence[tuple[Subject, Record]]) -> None:
        vocab_size = self.model.config.vocab_size
        for job in self.jobs:
            for subject, _ in pairs:
                job.warm_up(subject, vocab_size)
        for number in range(self.num_rounds):
            self.seen.append(self.probe())
            for job in self.jobs:
                for subject, record in pairs:
                    record.measure(job, subject, number, vocab_size)
                    value = record.rounds[job.name][-1]
                    self._say(f"round {number + 1} {job.name:13} {record.name:16} {value:8.1f}")

    def _paired_rounds(self, subject: Subject, ours: Record) -> None:
        """Decodes beside reads: a shared machine's memory can change its rate within a second."""
        pattern = Ceilings.typical(self.seen).read_pattern
        for number in range(self.num_rounds):
            for job in self.jobs:
                if job.kind == DECODE:
                    ours.measure_paired(job, subject, number, self.model.config.vocab_size, pattern)

    @contextmanager
    def _started(self, launch: Launch) -> Iterator[Subject]:
        log = self.logs / f"{self.model.name}-{launch.name.replace(':', '-')}.log"
        with Subject(launch, log) as subject:
            self._say(f"{launch.name} has started in {subject.startup_s:.1f} s")
            yield subject

    def _say(self, what: str) -> None:
        """Progress: a run with peers takes an hour."""
        print(f"{self.model.name}: {what}", file=sys.stderr, flush=True)


def pairings_of(ours: Record, peers: Sequence[Record], num_rounds: int) -> list[Pairing]:
    """Each peer with those of our rounds that took turns with its."""
    found = []
    for number, peer in enumerate(peers):
        turns = slice(number * num_rounds, (number + 1) * num_rounds)
        beside = {figure: rounds[turns] for figure, rounds in ours.rounds.items()}
        found.append(Pairing(peer.name, beside, peer.rounds))
    return found
