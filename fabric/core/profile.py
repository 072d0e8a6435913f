"""How long iterations and copies take on a device, as measured: what policies reckon with."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import NoneType
from typing import Any

from fabric.core.errors import ConfigError
from fabric.core.interpolation import Grid, Line

VERSION = 1
_JSON_TYPES: dict[object, tuple[type, ...]] = {str: (str,), int: (int,), float: (int, float)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSubject:
    """What was measured: profiles of equal subjects may stand for each other.

    ``version`` is llm-fabric's, ``num_threads`` those of each device.
    """

    model: str
    source: str
    dtype: str
    device: str
    processor: str
    num_threads: int
    pipeline: int
    tensor: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    version: str
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class CopySpeed:
    """A tier's link to the device, one way: bytes a second, after ``latency_s`` for each batch."""

    tier: str
    direction: str
    bytes_per_s: float
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured times of one model on one device group.

    ``prefill`` are (prompt tokens, seconds), ascending; ``decode`` are (sequences, context tokens
    of each, seconds of one iteration), a full grid, ascending. ``host`` and ``measured_at`` (ISO
    8601) are for people.

    More work never takes less time: where measurements say so, something else must have kept the
    less work up, and the shorter time counts.

    Raises:
        ConfigError: A table is empty, out of order or no grid, or a number is none.
    """

    prefill: tuple[tuple[int, float], ...]
    decode: tuple[tuple[int, int, float], ...]
    copies: tuple[CopySpeed, ...] = ()
    block_bytes: int = 0
    subject: ProfileSubject | None = None
    host: str = ""
    measured_at: str = ""
    _prompts: Line = field(init=False, repr=False, compare=False)
    _batches: Grid = field(init=False, repr=False, compare=False)
    _links: dict[tuple[str, str], CopySpeed] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        links = {(copy.tier, copy.direction): copy for copy in self.copies}
        for copy in self.copies:
            if not (0.0 < copy.bytes_per_s < math.inf and 0.0 <= copy.latency_s < math.inf):
                raise ConfigError(f"copies: {copy} has no speed")
        # A frozen value's derived fields can't be set in another way.
        object.__setattr__(self, "_prompts", Line.through("prefill", self.prefill))
        object.__setattr__(self, "_batches", Grid.through("decode", self.decode))
        object.__setattr__(self, "_links", links)

    @classmethod
    def flat(cls, iteration_s: float, token_s: float) -> "Profile":
        """A made-up profile: every iteration takes as long, and each prompt token adds to it."""
        prefill = ((0, iteration_s), (1, iteration_s + token_s))
        return cls(prefill, ((1, 1, iteration_s),))

    @property
    def min_iteration_s(self) -> float:
        """Seconds of the shortest iteration that was measured: a decode of few short sequences.

        Source: FastServe (Wu et al.), section 4.1, the quantum of the first queue.
        """
        return self._batches.rows[0][0]

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds to compute a prompt of so many tokens alone, in as many chunks as it takes.

        Linear between the measured lengths, and beyond the last as before it.
        """
        return self._prompts.at(num_tokens)

    def rest_of_prefill_s(self, num_tokens: int, num_computed: int) -> float:
        """Seconds to compute what is left of a prompt whose first tokens have KV."""
        computed_s = self.prefill_s(num_computed) if num_computed else 0.0
        return self.prefill_s(num_tokens) - computed_s

    def decode_s(self, num_sequences: int, context: int) -> float:
        """Seconds of an iteration that computes one token of each of so many sequences.

        Bilinear between the measured points. Beyond them, each sequence more costs as much as
        the last ones measured, and so does each token of context, of each sequence.
        """
        return self._batches.at(num_sequences, context)

    def copy_s(self, tier: str, direction: str, num_bytes: int) -> float:
        """Seconds to copy so many bytes when nothing else is copied.

        A link that was not measured takes for ever, so that nobody chooses it.
        """
        link = self._links.get((tier, direction))
        return math.inf if link is None else link.latency_s + num_bytes / link.bytes_per_s

    def to_json(self) -> str:
        """The profile as a file; :meth:`from_json` reads it."""
        shown = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        shown["copies"] = [asdict(copy) for copy in self.copies]
        shown["subject"] = None if self.subject is None else asdict(self.subject)
        lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in shown.items())
        return ",\n".join((f'{{\n "version": {VERSION}', *lines)) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, origin: str = "profile") -> "Profile":
        """Read what :meth:`to_json` wrote.

        Args:
            text: The file's content.
            origin: What errors call it, such as its path.

        Raises:
            ConfigError: It is no profile, or of a version that we don't know; says why.
        """
        try:
            return cls(**_parse(text))
        except (ConfigError, TypeError, ValueError) as error:
            raise ConfigError(f"{origin}: {error}") from error


Profiles = Mapping[str, Profile]
"""The profiles of a group's models, by model."""


def _parse(text: str) -> dict[str, Any]:
    """A profile's constructor arguments, out of JSON."""
    tree = json.loads(text)
    version = tree.pop("version", None) if isinstance(tree, dict) else None
    if version != VERSION:
        raise ConfigError(f"version is {version!r}; this llm-fabric reads {VERSION}")
    values = _checked(Profile, tree, "")
    for name, width in (("prefill", 2), ("decode", 3)):
        values[name] = tuple(_point(row, width, name) for row in values.get(name, ()))
    copies = values.get("copies", ())
    values["copies"] = tuple(CopySpeed(**_checked(CopySpeed, copy, "copies.")) for copy in copies)
    if (subject := values.get("subject")) is not None:
        values["subject"] = ProfileSubject(**_checked(ProfileSubject, subject, "subject."))
    return values


def _checked(kind: type, tree: object, where: str) -> dict[str, Any]:
    """The fields of a dataclass out of a JSON object, each of the type that it has there."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where or 'file'}: {tree!r} is no JSON object")
    kinds = {item.name: item.type for item in fields(kind) if item.init}
    for name, value in tree.items():
        if name not in kinds:
            raise ConfigError(f"{where}{name} is unknown; allowed: {', '.join(kinds)}")
        allowed = _JSON_TYPES.get(kinds[name], (list, dict, NoneType))
        if not isinstance(value, allowed):
            raise ConfigError(f"{where}{name} is {value!r}")
    return tree


def _point(row: object, width: int, name: str) -> tuple[float, ...]:
    if isinstance(row, list) and len(row) == width:
        *counts, seconds = row
        if all(isinstance(count, int) for count in counts) and isinstance(seconds, int | float):
            return tuple(row)
    raise ConfigError(f"{name}: {row!r} is not {width - 1} whole numbers and seconds")
